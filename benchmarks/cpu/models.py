"""The models that are timed: random weights in the shapes of Dream and LLaDA, quantized and exported once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from random_checkpoint import write_checkpoint

import dlm_edge
from dlm_edge.bundle import Bundle, open_bundle
from dlm_edge.cache_choice import BODY, parse_cache
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.export import pipeline
from dlm_edge.export.measured_profile import Choice
from dlm_edge.export.profiles import PROFILES, Precision

BLOCK_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Model:
    """`name` is also the peer's name of the shape."""

    name: str
    family: str
    shape: str
    group_size: int = 128


MODELS = {
    model.name: model
    for model in (
        Model("dream-0.5b", "dream", "0.5b"),
        Model("dream-1.5b", "dream", "1.5b"),
        Model("llada-0.8b", "llada", "0.8b", 64),  # 3520 is no multiple of 128
        Model("dream-tiny", "dream", "tiny", 32),
        Model("llada-tiny", "llada", "tiny", 32),
    )
}


def bits_of(profile: str) -> int:
    return 8 if profile.startswith("w8") else 4


def prepare(folder: Path, name: str, profile: str, say: Callable[[str], None]) -> Bundle:
    """The bundle `profile` of a model, made where it is not there. The float checkpoint is deleted after quantizing: it
    follows from its seed."""
    model, bits = MODELS[name], bits_of(profile)
    source, packed, bundle = (folder / f"{name}-{kind}" for kind in ("float", f"{bits}bits", profile))
    if not bundle.exists():
        if not packed.exists():
            say(f"{name}: random weights")
            write_checkpoint(source, model.shape, block_length=BLOCK_LENGTH, family=model.family)
            say(f"{name}: rounding them to {bits} bits")
            plain = {"search": None}  # which would be 40 roundings of each group
            dlm_edge.quantize(
                source, packed, method="rtn", bits=bits, group_size=model.group_size, options=plain, restart=True
            )
            shutil.rmtree(source)
        say(f"{name}: exporting {profile}")
        if model.shape == "tiny":
            dlm_edge.export(packed, bundle, profile=profile)
        else:
            export_unchecked(packed, bundle, profile)
    return open_bundle(bundle)


def export_unchecked(packed: Path, bundle: Path, profile: str) -> None:
    """What `export` writes, without comparing the graph with the source model: that takes minutes and several times the
    memory of the weights in float, and nobody will read what random weights say. The tiny models go the whole way."""
    source, part = open_checkpoint(packed, need_tokenizer=True), bundle.with_name(f"{bundle.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    cache = parse_cache("kv", "cpu", source.spec)
    chosen = Choice(profile, PROFILES[profile].kernel)
    nodes, _ = pipeline.write_graph(source, part / pipeline.GRAPH_NAME, Precision(BODY["cpu"], chosen.kernel), cache[0])
    pipeline.copy_texts(source.path, part)
    pipeline.write_manifest(part, source, "cpu", cache, chosen, nodes, {})
    part.rename(bundle)
