"""What test_properties.py decodes: a sampler on a family, a prompt, a cache and a toy model, all drawn from one number."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.scores import Sampling
from tests.runtime import decoding
from tests.runtime.decoding import prompt_of, settings_of
from tests.runtime.samplers.claims import claims_of
from tests.runtime.samplers.scorers import KINDS, Scorer, guide_of
from tests.runtime.toy import EOS, FAMILIES, make_conventions

BLOCK = 4
LENGTHS = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 10)  # 10 is two and a half blocks
CACHES = {"full": ("none", "prefix", "dual", "freecache"), "block_causal": ("none", "block")}
CASES = [(name, family) for name in SAMPLERS for family in FAMILIES if family not in claims_of(name).refused]
SERVED = [name for name in SAMPLERS if len(claims_of(name).refused) < len(FAMILIES)]
NO_END = (EOS,)  # ids that a model must not say, so that the text does not end


def families_of(sampler):
    return [family for name, family in CASES if name == sampler]


def examples(n):
    """The same ones in every run. There is nothing to shrink: a case is one number, and shows what it stands for."""
    checks = (HealthCheck.too_slow,)
    phases = (Phase.generate,)
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=checks, phases=phases
    )


def decode(conventions, prompt, *, model, sampler, **settings):
    """With what the sampler cannot do without."""
    values = claims_of(sampler).settings | settings
    guide = guide_of(sampler, model, conventions)
    return decoding.decode(conventions, prompt, model=model, sampler=sampler, guide=guide, **values)


class Case:
    def __init__(self, seed, sampler, families, options, forbid):
        choose = Random(seed).choice
        self.sampler, self.family, self.options = sampler, choose(families), choose(options)
        own_spans = SAMPLERS[sampler].spans is not None or SAMPLERS[sampler].border is not None
        self.conventions = make_conventions(self.family, BLOCK, BLOCK if own_spans else choose([BLOCK, 3]))
        self.prompt = prompt_of(choose(LENGTHS[self.conventions.logit_shift :]))
        self.gen_len = choose([1, 5, 11])
        self.settings = {"cache": choose(CACHES[self.conventions.attention]), "cache_window": choose([0, 3, 512])}
        self.fixed = {offset: 7 + offset for offset in choose([(), (), (0,), (1, 2)]) if offset < self.gen_len}
        self.sampling = Sampling(temperature=choose([0.0, 0.0, 0.8]), seed=seed)
        self.scorer = {
            "kind": choose(KINDS),
            "seed": seed % 1000,
            "sharpness": choose([0.5, 3.0, 6.0, 20.0, 60.0]),
            "radius": choose([None, 0, 1, 3]),
            "forbid": forbid,
        }

    def __repr__(self):
        return f"Case({', '.join(f'{name}={value}' for name, value in vars(self).items() if name != 'conventions')})"

    def decode(self, **changes):
        """On a new model each time."""
        values = {"sampler": self.sampler, "gen_len": self.gen_len, "sampling": self.sampling, "stop_ids": ()}
        values |= {"fixed": self.fixed} | self.settings | self.options | changes
        return decode(self.conventions, self.prompt, model=Scorer(**self.scorer), **values)

    def most_steps(self, n_masked):
        """Selections in a span of so many masks."""
        chosen = SAMPLERS[self.sampler]
        options = settings_of(self.conventions, sampler=self.sampler, **self.options).options
        return n_masked if chosen.max_steps is None else chosen.max_steps(n_masked, options)


def cases(sampler, families=None, options=None, forbid=()):
    """hypothesis' draws of them; as a rule, all families and options of the sampler."""
    some, own = families or families_of(sampler), options or claims_of(sampler).options
    return st.integers(0, 2**32 - 1).map(lambda seed: Case(seed, sampler, some, own, forbid))


def requests_of(sampler, family, **changes):
    """(tokens, stats) for each of a few models that like to end the text."""
    options = claims_of(sampler).options
    for seed in range(6):
        conventions, prompt = make_conventions(family, BLOCK), prompt_of((1, BLOCK, 6)[seed % 3], seed)
        values = options[seed % len(options)] | {"gen_len": 15} | changes
        model = Scorer(seed=seed, boost=values.pop("boost", 2.0))
        yield decode(conventions, prompt, model=model, sampler=sampler, **values)
