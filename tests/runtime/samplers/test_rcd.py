"""What a masked slot remembers of its last prediction, and that no bundle is asked for it."""

import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.samplers.rcd import Options, mix
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.given import scores_of, select
from tests.runtime.toy import FAMILIES, MASK, VOCAB, make_conventions


def logits_of(seed, scale=3.0):
    return (scale * np.random.default_rng(seed).standard_normal(VOCAB)).astype(np.float32)


def test_it_commits_as_threshold_does():
    for seed in range(20):
        scores = scores_of(np.random.default_rng(seed).random(9))
        assert select("rcd", scores) == select("threshold", scores, threshold=0.85)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_with_all_tokens_the_mix_is_the_papers_formula(temperature):
    embeddings = np.random.default_rng(1).standard_normal((VOCAB, 6))
    for seed in range(5):
        logits = logits_of(seed)
        p = np.exp(logits.astype(np.float64) / temperature)
        p[MASK] = 0
        p /= p.sum()
        a = -sum(x * np.log(x) for x in p if x > 0) / np.log(VOCAB - 1)
        ids, weights = mix(logits, MASK, Options(mix_temperature=temperature, mix_top_k=1024))
        np.testing.assert_allclose(
            weights @ embeddings[ids], (1 - a) * embeddings[MASK] + a * p @ embeddings, atol=1e-6
        )


def test_few_tokens_keep_the_shares_of_mask_and_prediction():
    logits = logits_of(3)
    whole, few = (mix(logits, MASK, Options(mix_top_k=k)) for k in (1024, 4))
    assert few[0].tolist() == whole[0][:5].tolist() and few[0][0] == MASK
    assert few[1][0] == whole[1][0] and few[1].sum() == pytest.approx(1)
    np.testing.assert_allclose(few[1][1:] / few[1][1], whole[1][1:5] / whole[1][1], rtol=1e-6)


def test_the_less_sure_the_prediction_the_more_of_it_is_remembered():
    sure, flat = np.zeros(VOCAB, np.float32), np.zeros(VOCAB, np.float32)
    sure[4] = 200.0
    assert mix(sure, MASK, Options())[1][0] == pytest.approx(1)
    ids, weights = mix(flat, MASK, Options(mix_top_k=3))
    assert weights[0] == pytest.approx(0, abs=1e-6) and ids.tolist() == [MASK, 0, 1, 2]


def test_strength_zero_is_the_mask_alone():
    ids, weights = mix(logits_of(5), MASK, Options(strength=0.0))
    assert ids[0] == MASK and weights[0] == 1 and not weights[1:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_that_were_not_trained_for_it_refuse(family):
    with pytest.raises(UsageProblem, match="trained to read its own last guess") as error:
        decode(make_conventions(family, 8), prompt_of(9), sampler="rcd")
    assert error.value.code == "E-PARAM" and SAMPLERS["rcd"].needs.needs_soft_input
