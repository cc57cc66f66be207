"""The masked NLL that a quantization reports is that of the source and of the folder it wrote, on the same states.

The reference runs each whole model on one block at a time, as the runtime sees it: the finished text and one noisy
block after it (the whole canvas under full attention). So it shares neither the streams nor the packed rows.
"""

import json
import types

import pytest
import torch

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.models import load_model
from dlm_edge.quant import quantize
from dlm_edge.quant.calibration import load_calibration
from dlm_edge.quant.held_out import held_out_states
from tests.tiny import FAMILY_NAMES, make_checkpoint

BUCKETS = [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]
WORDS = "the shortest of all names comes first and then by letter those that are left over in their old order".split()
SIZES = {"hidden_size": 32, "head_dim": 8, "intermediate_size": 48}
GPTQ = {"method": "gptq", "bits": 2, "group_size": 16}
CASES = {
    **{family: (family, None, GPTQ) for family in FAMILY_NAMES},
    "llada-tied": ("llada", True, GPTQ),
    "dream-tied": ("dream", True, GPTQ),
    "sdar-untied": ("sdar", False, GPTQ),
    "fast_dllm_v2-tied": ("fast_dllm_v2", True, GPTQ),
    "rotated": ("sdar", None, GPTQ | {"rotate": True}),
    "rotated-untied": ("dream", False, GPTQ | {"rotate": True}),
    "decoupleq-tuned": ("sdar", None, {"method": "decoupleq", "bits": 2, "group_size": 16, "zero": "float", "tune": 2}),
    "folded": ("llada", None, GPTQ | {"method": "awq+gptq"}),
    **{f"int8-{family}": (family, None, {"method": "w8a8"}) for family in ("llada", "sdar")},
    "int8-outlier": ("dream", None, {"method": "int8-outlier"}),
    "float-embedding": ("fast_dllm_v2", None, GPTQ | {"skip": ["*embed*"]}),
    "float-head": ("dream", None, GPTQ | {"skip": ["*lm_head*"]}),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of short rows: under full attention each is one state, and every bucket is to have some."""
    path = tmp_path_factory.mktemp("calibration") / "calibration.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(WORDS[n : n + 5])}) + "\n" for n in range(16)))
    return path


def measured(model, batches):
    """(share of hidden tokens, nats) of every hidden content token."""
    conventions = model.spec.conventions
    for batch in batches:
        n_clean = int(batch.positions.max()) + 1
        n_copied = batch.ids.shape[1] - n_clean
        block = n_clean if not n_copied else conventions.block_length
        for row in range(len(batch.ids)):
            for first in range(n_clean if n_copied else 0, batch.ids.shape[1], block):
                here = slice(first, first + block)
                start = int(batch.positions[first])
                canvas = torch.cat([batch.originals[row, :start], batch.ids[row, here]])
                with torch.no_grad():
                    scores = model(canvas[None])[0, :, : model.spec.vocab_size].double()
                scores[:, conventions.mask_id] = -torch.inf
                log_probabilities = scores.log_softmax(-1)
                hidden = batch.ids[row, here] == conventions.mask_id
                for place in torch.nonzero(hidden & (batch.weights[row, here] > 0)).flatten().tolist():
                    read_at = start + place - conventions.logit_shift
                    if read_at >= 0:
                        token = batch.originals[row, first + place]
                        yield float(hidden.double().mean()), -float(log_probabilities[read_at, token])


def expected(source, folder, batches):
    both = [list(measured(load_model(path), batches)) for path in (source, folder)]
    rows = []
    for low, high in BUCKETS:
        before, after = ([nats for share, nats in model if low < share <= high] for model in both)
        if before:
            mean = {"before": sum(before) / len(before), "after": sum(after) / len(after)}
            rows.append({"low": low, "high": high, "tokens": len(before), **mean})
    return rows


@pytest.mark.parametrize("case", CASES)
def test_the_report_says_what_the_written_model_does(tmp_path, text, case):
    family, tied, settings = CASES[case]
    source = make_checkpoint(tmp_path / "source", family, n_layers=2, tied=tied, **SIZES)
    report = quantize(source, tmp_path / "out", calib_data=text, calib_tokens=256, **settings)
    states = held_out_states(open_checkpoint(source), types.SimpleNamespace(calib_data=text))
    wanted = expected(source, tmp_path / "out", states)
    assert sum(row["tokens"] for row in wanted) > 20
    least = 1e-4 if case.startswith("int8") else 0.01  # so that neither passes for the other
    assert max(abs(row["after"] / row["before"] - 1) for row in wanted) > least
    for row, found in zip(wanted, report.quality, strict=True):
        # float32 sums in another order, over two layers: measured below 5e-8
        assert found == pytest.approx(row, rel=1e-6)
    record = open_checkpoint(tmp_path / "out").record
    assert record is not None and record.quality == report.quality


def test_the_held_out_masks_are_not_those_of_the_calibration(tmp_path, text):
    """With data of the user's the rows are the same; the seed of the job does not reach the held-out ones."""
    source = open_checkpoint(make_checkpoint(tmp_path / "source", "sdar", n_layers=1))
    first, second = (held_out_states(source, types.SimpleNamespace(calib_data=text, seed=seed)) for seed in (0, 1))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.originals, b.originals)


def test_without_data_of_the_user_s_the_held_out_texts_are_others(tmp_path):
    source = open_checkpoint(make_checkpoint(tmp_path / "source", "sdar", n_layers=1, max_positions=128))
    options = types.SimpleNamespace(calib_data=None, calibration="forward", seed=0)
    held_out = texts(held_out_states(source, options))
    assert len(held_out) > 10
    calibrated = texts(load_calibration(source, options, 4096).batches)
    assert len(held_out & calibrated) < 0.2 * len(held_out)


def texts(batches):
    """The clean part of every row."""
    return {tuple(row[: int(b.positions.max()) + 1].tolist()) for b in batches for row in b.originals}
