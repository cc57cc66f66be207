"""One call of the loop on the toy model, for the tests of this folder."""

from __future__ import annotations

from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.denoise import denoise
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.scores import Sampling
from tests.runtime.toy import ToyModel


def settings_of(conventions, *, sampler="static", gen_len=19, sampling=None, **settings):
    """Block lengths and stop ids are the family's unless given. A sampler is given those of the settings that it has."""
    values = {
        "gen_len": gen_len,
        "block_length": conventions.block_length,
        "sub_block_length": conventions.sub_block_length,
        "stop_ids": conventions.stop_ids,
        "sampling": sampling or Sampling(),
    } | settings
    chosen = SAMPLERS[sampler]
    anybody = {name for each in SAMPLERS.values() for name in each.option_names}
    own = {name: values.pop(name) for name in anybody & set(values)}
    own = {name: value for name, value in own.items() if name in chosen.option_names}
    values["options"] = chosen.options(**own)
    if "block_length" in settings and "sub_block_length" not in settings:
        values["sub_block_length"] = settings["block_length"]
    return DecodeSettings(**values)


def decode(conventions, prompt, *, model=None, sampler="static", on_step=None, guide=None, **settings):
    """(tokens, stats) of one request."""
    watch = on_step or (lambda progress: None)
    chosen, values = SAMPLERS[sampler], settings_of(conventions, sampler=sampler, **settings)
    return denoise(model or ToyModel(), conventions, prompt, values, chosen, watch, guide=guide)


def prompt_of(length, start=0):
    return [(start + 7 * i) % 30 for i in range(length)]
