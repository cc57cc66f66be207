"""The calibration states of one job, and what the record and the fingerprint say about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.errors import InputFileError
from dlm_edge.quant.calibration_text import CalibrationRows, default_rows, read_rows, repeated
from dlm_edge.quant.plan import QuantizeOptions
from dlm_edge.quant.states import Batch, StateConfig, make_states


@dataclass(frozen=True, slots=True)
class Calibration:
    batches: list[Batch]
    data: CalibrationRows
    config: StateConfig
    tokens: int  # with a weight in the statistics, over all states

    def description(self) -> dict[str, Any]:
        data, config = self.data, self.config
        return {
            "mode": config.mode,
            "visible_weight": config.visible,
            "clean_weight": config.clean,
            "data": data.source,
            "rows": len(data.rows),
            "duplicates": data.duplicates,
            "tokens": self.tokens,
            "sha256": data.sha256,
        }

    def fingerprint(self) -> str:
        return f"{self.data.source}, sha256 {self.data.sha256}"

    def summary(self) -> str:
        dropped = f", {self.data.duplicates} duplicates dropped" if self.data.duplicates else ""
        return f"{self.config.mode}, {self.data.source} data: {len(self.data.rows)} rows{dropped}, {self.tokens} weighted tokens"


def load_calibration(source: Checkpoint, options: QuantizeOptions, n_tokens: int) -> Calibration:
    """Texts, cut into rows, and their states. Raises E-TOK, E-CALIB, E-TEMPLATE."""
    tokenizer = read_tokenizer(source)
    if options.calib_data is None:
        data = default_rows(tokenizer, source.spec, n_tokens, options.seed)
    else:
        data = read_rows(options.calib_data, tokenizer, source.spec, chat_renderer(source))
    config = StateConfig(mode=options.calibration)
    batches = make_states(repeated(data.rows, n_tokens), source.spec.conventions, config, options.seed)
    return Calibration(batches, data, config, sum(int((b.weights > 0).sum()) for b in batches))


def read_tokenizer(source: Checkpoint) -> Tokenizer:
    path = source.path / "tokenizer.json"
    if not path.is_file():
        raise InputFileError(
            "E-TOK", f"{source.path} holds no tokenizer.json", "calibration needs it; or use --method rtn"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises the bare class
        raise InputFileError("E-TOK", f"{path}: {error}", "fetch it again") from error


def chat_renderer(source: Checkpoint) -> Callable[[list[dict[str, str]]], str] | None:
    path = source.path / "chat_template.jinja"
    if not path.is_file():
        return None
    from dlm_edge.runtime.template import ChatTemplate

    return ChatTemplate.read(path, max_positions=source.spec.max_positions).render
