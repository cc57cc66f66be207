"""The calibration states of one job, and what the record and the fingerprint say about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.checkpoint.chat_template import read_chat_template
from dlm_edge.errors import InputFileError, ResourceError, UsageProblem
from dlm_edge.memory import available_bytes
from dlm_edge.models.loading import build_model
from dlm_edge.quant.calibration_text import CalibrationRows, default_rows, limited, read_rows, repeats
from dlm_edge.quant.coverage import Coverage, measure_coverage
from dlm_edge.quant.state_batch import BATCH_TOKENS, Batch, StateConfig
from dlm_edge.quant.states import sample_states

MAX_TOKENS = 1 << 26
# What the measurements in docs/calibration.md speak for.
DEFAULTS = {mode: StateConfig(mode=mode) for mode in ("forward", "rollout", "clean")}


class Options(Protocol):
    """What load_calibration reads of a job's options."""

    @property
    def calibration(self) -> str: ...
    @property
    def calib_data(self) -> Any: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Calibration:
    batches: list[Batch]
    data: CalibrationRows
    config: StateConfig
    coverage: Coverage
    passes: int  # over the rows
    warnings: list[str]  # plain sentences: what the data cannot give

    @property
    def tokens(self) -> int:
        """With a weight in the statistics, over all states."""
        return self.coverage.tokens

    def description(self) -> dict[str, Any]:
        data, config, coverage = self.data, self.config, self.coverage
        return {
            "mode": config.mode,
            "draws": config.draws,
            "quota": config.quota,
            "confidence_weights": config.confidence,
            "visible_weight": config.visible,
            "clean_weight": config.clean,
            "data": data.source,
            "rows": len(data.rows),
            "rows_left_out": data.left_out,
            "passes": self.passes,
            "duplicates": data.duplicates,
            "tokens": coverage.tokens,
            "effective_tokens": round(coverage.effective_tokens),
            "tokens_per_input": round(coverage.tokens_per_input, 2),
            "distinct_ids": coverage.distinct_ids,
            "vocabulary_share": round(coverage.vocabulary_share, 4),
            "sha256": data.sha256,
            "warnings": list(self.warnings),
        }

    def fingerprint(self) -> str:
        settings = ", ".join(f"{key} {value}" for key, value in asdict(self.config).items())
        return f"{self.data.source}, sha256 {self.data.sha256}, {settings}, {self.tokens} tokens"

    def summary(self) -> str:
        dropped = f", {self.data.duplicates} duplicates dropped" if self.data.duplicates else ""
        dropped += f", {self.data.left_out} rows not needed" if self.data.left_out else ""
        return f"{self.config.mode}, {self.data.source} data: {len(self.data.rows)} rows{dropped}, {self.tokens} weighted tokens"


def load_calibration(
    source: Checkpoint, options: Options, n_tokens: int, states: StateConfig | None = None
) -> Calibration:
    """Texts, cut into rows, and their states; `n_tokens` are aimed at, counting every mask draw of a text.

    `states` replaces the defaults of the mode. Raises E-TOK, E-CALIB, E-TEMPLATE, E-DEPENDENCY, E-USAGE, and E-MEM
    where the states need the whole model and it does not fit.
    """
    if not 1 <= n_tokens <= MAX_TOKENS:
        raise UsageProblem("E-USAGE", f"{n_tokens} calibration tokens", f"choose 1 to {MAX_TOKENS}")
    config = DEFAULTS[options.calibration] if states is None else states
    if config.needs_model:
        check_model_fits(source, config)
    tokenizer = read_tokenizer(source)
    n_text = math.ceil(n_tokens / config.draws) if config.mode == "forward" else n_tokens
    if options.calib_data is None:
        data = default_rows(tokenizer, source.spec, n_text, options.seed)
    else:
        whole = read_rows(options.calib_data, tokenizer, source.spec, chat_renderer(source, tokenizer))
        data = limited(whole, n_text, options.seed)
    passes = repeats(data.rows, n_text)
    model = build_model(source) if config.needs_model else None
    conventions, rows = source.spec.conventions, data.rows * passes
    sampled = sample_states(rows, conventions, config, options.seed, model=model, n_tokens=n_tokens)
    coverage = measure_coverage(sampled.batches, source.spec)
    warnings = [*repeat_warnings(data, passes, n_text), *sampled.notes, *coverage.warnings()]
    return Calibration(sampled.batches, data, config, coverage, passes, warnings)


def repeat_warnings(data: CalibrationRows, passes: int, n_text: int) -> list[str]:
    found = sum(row.n_content for row in data.rows)
    if passes == 1:
        return []
    short = "" if passes * found >= n_text else f", which is still less than the {n_text} asked for"
    return [f"{data.source} has {found} tokens: used {passes} times, each time with other masks{short}"]


def model_bytes(source: Checkpoint) -> int:
    """Memory of the model in float32 beside one batch of states and its logits."""
    spec = source.spec
    weights = 4 * sum(math.prod(source.shape(role)) for role in source.roles())
    states = 4 * BATCH_TOKENS * (4 * spec.hidden_size + 3 * spec.intermediate_size + 2 * spec.q_width)
    kept = 4 * 2 * spec.n_layers * 2 * spec.kv_width * BATCH_TOKENS * 4  # keys and values of the prompts, twice
    return weights + states + kept + 4 * 3 * 512 * spec.embedding_rows


def check_model_fits(source: Checkpoint, config: StateConfig) -> None:
    """Raises E-MEM: the states of a model that must be streamed layer by layer cannot depend on its predictions."""
    needed, available = model_bytes(source), available_bytes()
    if available is not None and needed > available:
        what = "rollout calibration" if config.mode == "rollout" else "weighting by confidence"
        message = f"{what} runs the whole model in float32: {needed >> 20} MiB, and {available >> 20} MiB are available"
        raise ResourceError("E-MEM", message, "use --calibration forward, which needs one layer at a time")


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


def chat_renderer(source: Checkpoint, tokenizer: Tokenizer) -> Callable[[list[dict[str, str]]], str] | None:
    """The model's chat template as the runtime renders it; None where it has none."""
    text = read_chat_template(source.path)
    if text is None:
        return None
    from dlm_edge.runtime.template import ChatTemplate

    conventions = source.spec.conventions
    named = {"bos_token": conventions.bos_id, "eos_token": conventions.eos_id}
    named |= {"pad_token": conventions.pad_id, "mask_token": conventions.mask_id}
    tokens = {name: word for name, i in named.items() if i is not None and (word := tokenizer.id_to_token(i))}
    return ChatTemplate(text, max_positions=source.spec.max_positions, tokens=tokens).render
