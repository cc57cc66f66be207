"""What quantization costs in quality: a checkpoint rounded to nearest and with GPTQ, against full precision.

    python benchmarks/quantization.py reference --json quantization.json

Every row is a real output of `quantize`, opened again and run in torch on the same hidden tokens as its source:
windows of held-out Python text and samples of the tasks. Three measures, with standard errors over windows:
masked NLL (increase in percent of the source's), KL divergence from the source's distribution (in 1e-3 nats, by the
share of tokens hidden), and the share of hidden tokens whose most probable token changes. The increase of the NLL
contains chance of either sign where the source is not at a minimum of its loss; the KL divergence does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.evaluation.masked_nll import BUCKETS, text_windows
from dlm_edge.evaluation.tasks import SHORT_TASKS, make_samples
from dlm_edge.models import load_model
from dlm_edge.models.transformer import DiffusionTransformer
from dlm_edge.quant import quantize
from dlm_edge.quant.calibration import read_tokenizer
from dlm_edge.quant.calibration_text import RowCutter, encode
from dlm_edge.quant.states import Batch, Row, StateConfig, make_states

EVALUATION_SEED = 20  # of tasks and of hidden tokens; calibration draws from others


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry per hidden token: the source's nats, the increase, the KL divergence, whether the most probable token
    changed, the share of its block (or row) hidden, and its window."""

    nats: NDArray[np.float64]
    increase: NDArray[np.float64]
    divergence: NDArray[np.float64]
    flipped: NDArray[np.float64]
    share: NDArray[np.float64]
    window: NDArray[np.int64]


def evaluation_rows(
    tokenizer: Tokenizer, model: DiffusionTransformer, windows: int, samples: int
) -> dict[str, list[Row]]:
    cutter = RowCutter(model.spec)
    ids, _ = text_windows(tokenizer, windows, cutter.window)
    tasks = [s for name in SHORT_TASKS for s in make_samples(name, samples, EVALUATION_SEED)]
    return {
        "text": [Row(tuple(w), 0, cutter.window) for w in ids.tolist()],
        "tasks": [r for s in tasks for r in cutter.whole(encode(tokenizer, s.prompt), encode(tokenizer, s.answer))],
    }


@torch.inference_mode()
def score(base: DiffusionTransformer, other: DiffusionTransformer, rows: list[Row]) -> Scores:
    conventions = base.spec.conventions
    parts, n_windows = [], 0
    for batch in make_states(rows, conventions, StateConfig(), EVALUATION_SEED):
        window, index = torch.nonzero(batch.ids != batch.originals, as_tuple=True)
        source = predictor(batch, conventions.logit_shift, conventions.block_length)[index]
        window, index, source = (t[source >= 0] for t in (window, index, source))
        before, after = (log_probabilities(model, batch, window, source) for model in (base, other))
        target = batch.originals[window, index][:, None]
        nats, new_nats = (-p.gather(1, target)[:, 0].double() for p in (before, after))
        possible = before > -math.inf
        divergence = torch.where(possible, before.exp() * (before - after), 0.0).sum(1).double()
        flipped = (before.argmax(1) != after.argmax(1)).double()
        share = hidden_share(batch, conventions.block_length)[window, index]
        parts.append((nats, new_nats - nats, divergence, flipped, share, window + n_windows))
        n_windows += len(batch.ids)
    return Scores(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def log_probabilities(model: DiffusionTransformer, batch: Batch, window: Tensor, source: Tensor) -> Tensor:
    """[hidden tokens, vocab_size], read at `source` of each window; the mask token has no probability."""
    out = model.run_layers(model.embed(batch.ids), batch.positions, batch.attend)[window, source]
    logits: Tensor = model.head(model.final_norm(out))[:, : model.spec.vocab_size]
    logits[:, model.spec.conventions.mask_id] = -math.inf
    return logits.log_softmax(1)


def predictor(batch: Batch, shift: int, block: int) -> Tensor:
    """For every place in the row the place whose logits predict it; -1 for the first token of a shifted model."""
    place = torch.arange(len(batch.positions))
    if not shift:
        return place
    n_clean = int(batch.positions.max()) + 1
    noisy_first = (place >= n_clean) & (batch.positions % block == 0)  # read from the clean copy of the block before
    return torch.where(noisy_first, batch.positions, place) - 1


def hidden_share(batch: Batch, block: int) -> Tensor:
    """[rows, seq]: hidden tokens of the block's noisy copy (of the row, where there is no copy) in its length."""
    hidden = (batch.ids != batch.originals).double()
    n_clean = int(batch.positions.max()) + 1
    if hidden.shape[1] == n_clean:
        return hidden.mean(1, keepdim=True).expand_as(hidden)
    noisy = hidden[:, n_clean:].reshape(len(hidden), -1, block).mean(2).repeat_interleave(block, 1)
    return torch.cat([torch.zeros_like(hidden[:, :n_clean]), noisy], 1)


def summary(scores: Scores) -> dict[str, Any]:
    """NLL increases in percent of the source's, KL divergences in nats, by bucket of hidden shares."""
    relative = 100 / scores.nats.mean()
    inside = [(scores.share > low) & (scores.share <= high) for low, high in BUCKETS]
    return {
        "nll": float(scores.nats.mean()),
        "tokens": len(scores.nats),
        "increase": scores.increase.mean() * relative,
        "increase_error": standard_error(scores.increase, scores.window) * relative,
        "increase_by_bucket": [100 * scores.increase[i].mean() / scores.nats[i].mean() for i in inside],
        "divergence": scores.divergence.mean(),
        "divergence_error": standard_error(scores.divergence, scores.window),
        "divergence_by_bucket": [scores.divergence[i].mean() for i in inside],
        "flipped": scores.flipped.mean(),
    }


def standard_error(values: NDArray[np.float64], window: NDArray[np.int64]) -> float:
    """Of the mean over tokens, with windows as the independent draws (ratio estimator)."""
    counts = np.bincount(window)
    residual = np.bincount(window, values) - counts * values.mean()
    return float(residual.std(ddof=1) * math.sqrt(len(counts)) / counts.sum())


def settings(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for bits, group_size, method in itertools.product(args.bits, args.group_sizes, args.methods):
        for calibration in args.calibrations if method == "gptq" else ["forward"]:
            yield {"method": method, "bits": bits, "group_size": group_size, "calibration": calibration}


def show(row: dict[str, Any]) -> str:
    label = f"{row['method']:5} {row['bits']} bits g{row['group_size']:<4}"
    label += f"{row['calibration'] if row['method'] == 'gptq' else '':8}{row['bits_per_weight']:5.2f}"
    for kind in ("text", "tasks"):
        part = row[kind]
        buckets = " ".join(f"{1e3 * b:6.2f}" for b in part["divergence_by_bucket"])
        label += f" | NLL {part['increase']:6.2f} +- {part['increase_error']:.2f} %"
        label += f"  KL {1e3 * part['divergence']:6.2f} +- {1e3 * part['divergence_error']:.2f} ({buckets})"
        label += f"  flipped {100 * part['flipped']:.2f} %"
    return f"{label}  {row['seconds']:4.0f} s"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3, 2])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--methods", nargs="+", default=["rtn", "gptq"])
    parser.add_argument("--calibrations", nargs="+", default=["forward", "clean"])
    parser.add_argument("--windows", type=int, default=192, help="of held-out text")
    parser.add_argument("--samples", type=int, default=100, help="of each task")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    model, source = load_model(args.checkpoint), open_checkpoint(args.checkpoint)
    rows = evaluation_rows(read_tokenizer(source), model, args.windows, args.samples)
    result: dict[str, Any] = {
        "checkpoint": source.name,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "rows": [],
    }
    print("held-out text | tasks; KL in 1e-3 nats, by share hidden (0-25, 25-50, 50-75, 75-100 %)", flush=True)
    for chosen in settings(args):
        with tempfile.TemporaryDirectory() as folder:
            report = quantize(args.checkpoint, Path(folder) / "out", **chosen)
            quantized = load_model(Path(folder) / "out")
        row = {**chosen, "bits_per_weight": report.bits_per_weight, "seconds": report.seconds}
        row |= {kind: summary(score(model, quantized, r)) for kind, r in rows.items()}
        result["rows"].append(row)
        print(show(row), flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
