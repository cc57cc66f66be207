"""A guide beside a model: what is checked when both are opened, and real bundles of two sizes of tiny models."""

import json
import threading

import pytest

from dlm_edge.errors import DlmEdgeError, UsageProblem
from dlm_edge.runtime.engine import Engine
from dlm_edge.runtime.guide import GuideModel
from dlm_edge.runtime.guide_bundle import GuideParts, check_same_vocabulary
from dlm_edge.runtime.text import TextCodec
from tests.runtime.conftest import toy_parts
from tests.runtime.toy import ToyModel
from tests.tiny import EOS_ID, MASK_ID, PAD_ID, VOCAB_SIZE, make_checkpoint, make_spec, make_tokenizer

PROMPT = list(range(40, 53))  # 13 tokens: with 19 more the text ends on a border of blocks of 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Bundles of a model and of smaller ones: {name: folder}."""
    export = pytest.importorskip("dlm_edge.export", reason="needs onnx").export
    folder, made = tmp_path_factory.mktemp("guides"), {}
    for name, family, seed, layers in (("sdar", "sdar", 1, 3), ("llada", "llada", 2, 3), ("small", "llada", 3, 2)):
        make_checkpoint(folder / name, family, seed=seed, n_layers=layers)
        made[name] = folder / f"{name}-bundle"
        export(str(folder / name), str(made[name]))
    return made


@pytest.mark.parametrize("family", ["llada", "sdar"])
def test_the_guides_own_text_comes_out(folders, family):
    """Written by the guide alone with blocks of one token, which is from left to right."""
    settings = {"max_new_tokens": 19, "stop_at_eos": False}
    with Engine.open(folders["small"], threads=1) as alone:
        expected = alone.generate(PROMPT, block_length=1, sampler="static", cache="none", **settings).token_ids
    if family == "llada":  # whose blocks begin where the prompt ends: the guide shall see no masks beyond the text
        settings["block_length"] = 19
    with Engine.open(folders[family], threads=1, guide=folders["small"]) as engine:
        own = engine.generate(PROMPT, **settings)
        guided = engine.generate(PROMPT, sampler="guided", sampler_options={"rule": "deterministic"}, **settings)
        free = engine.generate(PROMPT, sampler="guided", sampler_options={"k": 400, "ratio": 0.0}, **settings)
    assert guided.token_ids == expected != own.token_ids
    assert guided.guide_passes >= guided.steps > free.steps and own.guide_passes == 0
    assert free.token_ids != expected


def test_jobs_in_flight_have_a_guide_each(folders):
    settings = {"sampler": "guided", "max_new_tokens": 19, "stop_at_eos": False}
    prompts = [PROMPT[i:] for i in range(6)]
    with Engine.open(folders["sdar"], threads=1, guide=folders["small"]) as engine:
        expected = [engine.generate(prompt, **settings).token_ids for prompt in prompts]
    with Engine.open(folders["sdar"], threads=1, guide=folders["small"], parallel=3) as engine:
        jobs = [engine.submit(prompt, is_watched=False, **settings) for prompt in prompts]
        assert [job.result(60).token_ids for job in jobs] == expected
        engine.forget_prompt()
        assert engine.generate(prompts[0], **settings).token_ids == expected[0]


def test_memory_of_both_counts(folders):
    with Engine.open(folders["sdar"], threads=1) as engine:
        alone = engine.stats()
    with Engine.open(folders["small"], threads=1) as engine:
        small = engine.stats()
    with Engine.open(folders["sdar"], threads=1, guide=folders["small"]) as engine:
        both = engine.stats()
        assert both.weight_bytes == alone.weight_bytes + small.weight_bytes
        engine.generate(PROMPT, max_new_tokens=19)
        plain = engine.stats().working_bytes
        engine.generate(PROMPT, max_new_tokens=19, sampler="guided")
        assert engine.stats().working_bytes > plain
    with pytest.raises(DlmEdgeError) as error:
        Engine.open(folders["sdar"], threads=1, guide=folders["small"], memory_budget=both.weight_bytes)
    assert error.value.code == "E-MEM"


def with_guide(model=None, **conventions):
    """An engine on toys, whose guide is another toy."""
    spec = make_spec("llada", **conventions)
    model = model or ToyModel(9, VOCAB_SIZE, [EOS_ID, PAD_ID, MASK_ID])
    guide = GuideParts(spec=spec, models=[GuideModel(model, spec.conventions)], weight_bytes=1000)
    return Engine(toy_parts("llada", guide=guide))


def test_cancelling_ends_the_guides_run_too():
    class Slow(ToyModel):
        """Runs until somebody terminates it."""

        def run(self, *args, **options):
            self.began.set()
            while not self.stopped:
                pass
            return super().run(*args, **options)

    slow = Slow(9, VOCAB_SIZE)
    slow.began = threading.Event()
    with with_guide(slow) as engine:
        job = engine.submit("some words", sampler="guided", max_new_tokens=8)
        assert slow.began.wait(10)
        job.cancel()
        assert job.result(10).stop_reason == "cancelled"


def test_a_failed_guide_forgets_what_it_holds():
    class Broken(ToyModel):
        discarded = 0

        def logits(self, hidden, positions):
            return super().logits(hidden, positions) * float("nan")

        def discard(self):
            self.discarded += 1

    broken = Broken(9, VOCAB_SIZE)
    with with_guide(broken) as engine:
        with pytest.raises(DlmEdgeError) as error:
            engine.generate("some words", sampler="guided", max_new_tokens=8)
        assert error.value.code == "E-NUM" and broken.discarded == 1
        assert engine.generate("some words", max_new_tokens=8).new_tokens == 8


def test_without_a_guide_and_beyond_its_context():
    with Engine(toy_parts("llada")) as engine, pytest.raises(UsageProblem, match="needs a second model"):
        engine.generate("some words", sampler="guided")
    with with_guide(max_positions=64) as engine, pytest.raises(UsageProblem, match="guide's context of 64") as error:
        engine.generate("some words", sampler="guided", max_new_tokens=100)
    assert error.value.code == "E-CONTEXT"


def codec(text="", spec=None):
    """The tiny tokenizer, in which one token is written otherwise."""
    from tokenizers import Tokenizer

    raw = make_tokenizer().to_str()
    if text:
        found = json.loads(raw)
        vocabulary = found["model"]["vocab"]
        longest = max(vocabulary, key=lambda token: (len(token), vocabulary[token]))
        vocabulary[text] = vocabulary.pop(longest)
        found["model"]["merges"] = [m for m in found["model"]["merges"] if "".join(m).replace(" ", "") != longest]
        raw = json.dumps(found)
    return TextCodec(Tokenizer.from_str(raw), spec or make_spec("llada"))


def test_vocabularies_are_compared():
    check_same_vocabulary(codec(), codec())
    for other, code, said in (
        (codec("zzzz"), "E-TOK", "'zzzz' in the guide's tokenizer"),
        (
            codec(spec=make_spec("llada", vocab_size=VOCAB_SIZE - 1)),
            "E-PARAM",
            f"the guide has {VOCAB_SIZE - 1} tokens",
        ),
        (codec(spec=make_spec("llada", mask_id=PAD_ID)), "E-PARAM", f"mask is token {PAD_ID}"),
    ):
        with pytest.raises(UsageProblem, match=said) as error:
            check_same_vocabulary(codec(), other)
        assert error.value.code == code
