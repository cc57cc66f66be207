"""Traces of `static`, and the verb from prompts to a bundle that has a filter."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dlm_edge import filter_training
from dlm_edge.bundle import FILTER_NAME, open_bundle
from dlm_edge.checking import check
from dlm_edge.cli.program import main
from dlm_edge.errors import DlmEdgeError
from dlm_edge.filter_traces import record_traces, trace
from dlm_edge.filter_training import split, train_filter
from dlm_edge.runtime import Engine
from dlm_edge.runtime.request import prepare
from dlm_edge.tuning.prompts import Question
from tests.runtime.conftest import toy_parts
from tests.runtime.toy import ToyModel
from tests.tiny import EOS_ID, MASK_ID, PAD_ID, VOCAB_SIZE


def traced(family, prompt, gen_len=20):
    parts = toy_parts(family, ToyModel(vocab=VOCAB_SIZE, forbid=(MASK_ID, PAD_ID, EOS_ID)))
    request = prepare(parts, prompt, {"sampler": "static", "max_new_tokens": gen_len})
    return trace(parts, request.ids, request.settings)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm_v2"])
def test_the_most_confident_prediction_is_always_right(family):
    """It is the one that `static` commits; filled slots are 1, and nobody asks about them."""
    rows = traced(family, list(range(5, 16)))
    assert 18 <= len(rows) <= 32
    shares = []
    for confidence, is_scored, is_right in rows:
        assert len(confidence) == 8 and is_scored.any()
        assert is_right[np.argmax(np.where(is_scored, confidence, -1))]
        assert not is_right[~is_scored].any() and set(confidence[~is_scored]) <= {0.0, 1.0}
        shares.append(is_right[is_scored].mean())
    assert 0.2 < np.mean(shares) < 0.9


class Ending(ToyModel):
    """Likes to end the text."""

    def logits(self, hidden, positions):
        found = super().logits(hidden, positions)
        found[:, EOS_ID] += 4
        return found


def test_nothing_is_shown_right_of_the_end():
    """Slots right of a stop id that is committed have no scores any more, as in the sampler's own run."""
    shorter = 0
    for seed in range(12):
        parts = toy_parts("llada", Ending(seed=seed, vocab=VOCAB_SIZE, forbid=(MASK_ID, PAD_ID)))
        request = prepare(parts, [5, 6, 7], {"sampler": "static", "max_new_tokens": 8})
        for confidence, is_scored, _ in trace(parts, request.ids, request.settings):
            left_out = (confidence == 0) & ~is_scored
            if left_out.any():
                shorter += 1
                assert np.flatnonzero(left_out).min() > np.flatnonzero(is_scored).max()
    assert shorter > 5


def test_traces_of_several_prompts_know_theirs(make_engine):
    engine = make_engine("sdar")
    said = []
    questions = [Question(text, 12) for text in ("one", "two words", "three of them")]
    traces = record_traces(engine, questions[:2], raw=questions[2:], say=said.append)
    assert set(traces.prompt) == {0, 1, 2} and traces.confidence.shape[1] == 8 and said
    train, held_out = split(traces, 3, 0)
    assert len(train.prompt) + len(held_out.prompt) == len(traces.prompt) and len(set(held_out.prompt)) == 1


@pytest.fixture
def bundle(bundles, tmp_path):
    return shutil.copytree(bundles["llada"][1], tmp_path / "bundle")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"text number {i * i}"}) + "\n" for i in range(12)))
    return path


def test_the_verb_writes_a_filter_that_the_sampler_uses(bundle, prompts, capsys):
    words = ["train-filter", str(bundle), "--prompts", str(prompts), "--max-new-tokens", "16", "--epochs", "4"]
    assert main([*words, "--threads", "1", "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert report["prompts"] == 12 and report["block_length"] == 8 and report["source"] == prompts.name
    assert report["steps"] >= 12 and 0 <= report["held_out"]["accuracy"] <= 1 and "decoding" in output.err
    manifest = open_bundle(bundle, verify_hashes=True).manifest
    assert manifest.measured["filter"] == {k: v for k, v in report.items() if k != "bundle"}
    assert check(bundle).ok
    with Engine.open(bundle, threads=1) as engine:
        result = engine.generate("text", sampler="learn2pd", max_new_tokens=16, stop_at_eos=False)
        assert result.new_tokens == 16 and result.steps <= 16
    before = (bundle / FILTER_NAME).read_bytes()
    assert main([*words, "--threads", "1"]) == 0
    output = capsys.readouterr()
    assert "held out" in output.out and "--sampler learn2pd" in output.out
    assert (bundle / FILTER_NAME).read_bytes() == before, "the same prompts and seed make the same filter"


def listing(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("moment", ["record_traces", "fit", "measure"])
def test_an_interrupted_run_leaves_the_bundle_as_it_was(bundle, prompts, monkeypatch, moment):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(filter_training, moment, interrupt)
    before = listing(bundle)
    words = ["train-filter", str(bundle), "--prompts", str(prompts), "--max-new-tokens", "4", "--epochs", "1", "-q"]
    assert main([*words, "--threads", "1"]) == 130
    assert listing(bundle) == before


def test_what_cannot_be_learnt_from_is_refused(bundle, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    before = listing(bundle)
    for options, code in (
        ({"prompts": few}, "E-PROMPT"),
        ({"prompts": tmp_path / "none.txt"}, "E-FILE"),
        ({"max_new_tokens": 5}, "E-USAGE"),
    ):
        with pytest.raises(DlmEdgeError) as error:
            train_filter(bundle, **options)
        assert error.value.code == code
    assert listing(bundle) == before
