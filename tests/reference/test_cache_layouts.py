"""Compressed caches on a trained model, whose tokens are far apart: the same text as with exact ones."""

from __future__ import annotations

import pytest

from dlm_edge.evaluation.tasks import SHORT_TASKS, make_samples
from dlm_edge.export import export
from dlm_edge.runtime import Engine

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """texts(layout): answers to samples of every short task."""

    def find(layout):
        folder = tmp_path_factory.mktemp("reference") / layout
        export("reference", folder, cache=layout)
        samples = [sample for task in SHORT_TASKS for sample in make_samples(task, 2, seed=21)]
        with Engine.open(folder, threads=1) as engine:
            options = {"max_new_tokens": NEW_TOKENS, "sampler": "static"}
            return [engine.generate(sample.prompt, **options).text for sample in samples]

    return find


def test_eight_bits_give_the_same_texts(texts):
    expected = texts("kv-fp32")
    for layout in ("kv-int8", "x-int8"):
        assert texts(layout) == expected, layout
