"""Engines on the toy model, and tiny bundles of every family exported once."""

from __future__ import annotations

import pytest

from dlm_edge.runtime.engine import Engine
from dlm_edge.runtime.opening import Parts
from dlm_edge.runtime.template import ChatTemplate
from dlm_edge.runtime.text import TextCodec
from tests.runtime.toy import ToyModel
from tests.tiny import EOS_ID, FAMILY_NAMES, MASK_ID, PAD_ID, VOCAB_SIZE, make_checkpoint, make_spec, make_tokenizer

TEMPLATE = "{% for m in messages %}<|pad|>{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}<|pad|>assistant\n"


def toy_parts(family="sdar", model=None, **changes):
    spec = make_spec(family)
    model = model or ToyModel(vocab=VOCAB_SIZE, forbid=[EOS_ID, PAD_ID, MASK_ID])
    values = {
        "spec": spec,
        "model": model,
        "codec": TextCodec(make_tokenizer(), spec),
        "template": ChatTemplate(TEMPLATE, max_positions=spec.max_positions),
        "sampler_defaults": {},
        "device": "cpu",
        "native_operators": False,
    }
    return Parts(**(values | changes))


@pytest.fixture
def make_engine():
    engines = []

    def make(*args, **changes):
        engines.append(Engine(toy_parts(*args, **changes)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def open_with(tmp_path_factory):
    """open_with(family, cache, native): an engine on a tiny bundle of four layers; each is made once, and has no prompt."""
    export = pytest.importorskip("dlm_edge.export", reason="needs onnx").export
    folder, engines = tmp_path_factory.mktemp("layouts"), {}

    def find(family, cache="kv-fp32", native=True):
        if not (folder / family).exists():
            make_checkpoint(folder / family, family, n_layers=4)
        bundle = folder / f"{family}-{cache}"
        if not bundle.exists():
            export(str(folder / family), str(bundle), cache=cache)
        if (bundle, native) not in engines:
            with pytest.MonkeyPatch.context() as patch:
                if not native:
                    patch.setattr("dlm_edge.kernels.register", lambda options: False)
                engines[bundle, native] = Engine.open(bundle, threads=1)
        engines[bundle, native].forget_prompt()
        return engines[bundle, native]

    find.folder = folder
    yield find
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """{family: (checkpoint folder, bundle folder)}"""
    export = pytest.importorskip("dlm_edge.export", reason="needs onnx").export
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for family in FAMILY_NAMES:
        checkpoint = make_checkpoint(folder / family, family)
        export(str(checkpoint), str(folder / f"{family}-bundle"))
        made[family] = (checkpoint, folder / f"{family}-bundle")
    return made
