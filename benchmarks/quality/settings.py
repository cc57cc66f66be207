"""The rows of the table: every named setting of ours and of the peers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["plain", "ours", "peer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """`options`: keyword arguments of `dlm_edge.quant.quantize` (ours), of the adapter's command line (peer, with its
    `script` and the folder of its packages, `venv`), or of plain rounding. `data_free`: the same for every seed."""

    name: str
    source: Source
    bits: int
    options: dict[str, Any] = field(default_factory=dict)
    data_free: bool = False
    script: str = ""
    venv: str = ""


# Forms of our methods, each at 4, 3 and 2 bits: name -> options, and whether it uses calibration data.
OURS: dict[str, tuple[dict[str, Any], bool]] = {
    "rtn": ({"method": "rtn"}, False),
    "rtn asym": ({"method": "rtn", "zero": "integer"}, False),
    "hqq": ({"method": "hqq", "zero": "float"}, False),
    "gptq": ({"method": "gptq"}, True),
    "gptq asym": ({"method": "gptq", "zero": "integer"}, True),
    "gptaq asym": ({"method": "gptaq", "zero": "integer"}, True),
    "awq asym": ({"method": "awq", "zero": "integer"}, True),
    "awq+gptq asym": ({"method": "awq+gptq", "zero": "integer"}, True),
    "rotated gptq asym": ({"method": "gptq", "zero": "integer", "rotate": True}, True),
    "decoupleq sym": ({"method": "decoupleq"}, True),
    "decoupleq asym": ({"method": "decoupleq", "zero": "integer"}, True),
    "decoupleq": ({"method": "decoupleq", "zero": "float"}, True),
}
# Choices among calibration states, for the method whose statistics they are.
STATES: dict[str, dict[str, Any]] = {
    "clean": {"calibration": "clean"},
    "rollout": {"calibration": "rollout"},
    "confidence": {"confidence": True},
    "2 draws": {"draws": 2},
    "rollout u-shaped": {"calibration": "rollout", "quota": "u_shaped"},
}
OURS |= {
    f"gptq asym {name}": ({"method": "gptq", "zero": "integer", **chosen}, True) for name, chosen in STATES.items()
}
BEST = "decoupleq"  # calibrated in every way
CALIBRATIONS = ("clean", "forward", "rollout")
# Settings of one width, and recipes as users name them.
SINGLE: dict[str, tuple[int, dict[str, Any], bool]] = {
    "nf4": (4, {"method": "nf4"}, False),
    "fp4": (4, {"method": "fp4"}, False),
    "mixed 3.0": (3, {"method": "mixed", "bits": 3.0, "group_size": 32, "zero": "float"}, True),
    "mixed 2.5": (2, {"method": "mixed", "bits": 2.5, "group_size": 32, "zero": "float"}, True),
    "recipe w4": (4, {"recipe": "w4"}, True),
    "recipe w4-quality": (4, {"recipe": "w4-quality"}, True),
    "recipe w3": (3, {"recipe": "w3"}, True),
    "recipe w2": (2, {"recipe": "w2"}, True),
    "smoothquant w8a8": (8, {"method": "smoothquant"}, True),
    "int8-outlier w8a8": (8, {"method": "int8-outlier"}, True),
    "recipe w8a8": (8, {"recipe": "w8a8"}, True),
}
GPTQ = ("gptq_model_peer.py", "gptqmodel")
COMPRESSOR = ("llm_compressor_peer.py", "others")
ROUND = ("auto_round_peer.py", "others")
SYMMETRIC, ASYMMETRIC = {"zero": "symmetric"}, {"zero": "asymmetric"}
# name -> (script, venv), options, uses data
PEERS: dict[str, tuple[tuple[str, str], dict[str, Any], bool]] = {
    "hqq": (("hqq_peer.py", "others"), {}, False),
    "gptqmodel clean sym": (GPTQ, {"calibration": "clean", **SYMMETRIC}, True),
    "gptqmodel clean asym": (GPTQ, {"calibration": "clean", **ASYMMETRIC}, True),
    "gptqmodel masked sym": (GPTQ, {"calibration": "masked", **SYMMETRIC}, True),
    "gptqmodel masked asym": (GPTQ, {"calibration": "masked", **ASYMMETRIC}, True),
    "gptqmodel masked asym search": (GPTQ, {"calibration": "masked", "variant": "search", **ASYMMETRIC}, True),
    "llm-compressor gptq sym": (COMPRESSOR, {"variant": "gptq", **SYMMETRIC}, True),
    "llm-compressor gptq asym": (COMPRESSOR, {"variant": "gptq", **ASYMMETRIC}, True),
    "llm-compressor awq asym": (COMPRESSOR, {"variant": "awq", **ASYMMETRIC}, True),
    "llm-compressor gptq masked asym": (COMPRESSOR, {"variant": "gptq", "calibration": "masked", **ASYMMETRIC}, True),
    "auto-round light sym": (ROUND, {"variant": "light", **SYMMETRIC}, True),
    "auto-round light asym": (ROUND, {"variant": "light", **ASYMMETRIC}, True),
    "auto-round default asym": (ROUND, {"variant": "default", **ASYMMETRIC}, True),
}
BASELINE = "plain rtn asym w{bits} g32"  # what the gap is closed from


def all_settings(bits: list[int], group_sizes: list[int]) -> Iterator[Setting]:
    for width in bits:
        for size in group_sizes:
            yield from _of_width(width, size)
    for name, (width, options, uses_data) in SINGLE.items():
        if width in bits or width == 8:
            yield Setting(name=name, source="ours", bits=width, options=options, data_free=not uses_data)
    yield Setting(
        name="plain rtn w8a8", source="plain", bits=8, options={"group_size": 0, "int8": True}, data_free=True
    )
    yield _peer("llm-compressor smoothquant+gptq w8a8", 8, COMPRESSOR, {"variant": "w8a8", "group-size": 0}, True)
    for kind in ("nf4", "fp4"):
        for size in group_sizes if 4 in bits else []:
            options = {"variant": kind, "group-size": size}
            yield _peer(f"bitsandbytes {kind} g{size}", 4, ("bitsandbytes_peer.py", "others"), options, False)


def _of_width(width: int, size: int) -> Iterator[Setting]:
    form = f"w{width} g{size}"
    for name, asymmetric in (("sym", False), ("asym", True)):
        options: dict[str, Any] = {"group_size": size, "asymmetric": asymmetric}
        yield Setting(name=f"plain rtn {name} {form}", source="plain", bits=width, options=options, data_free=True)
    for name, (options, uses_data) in OURS.items():
        calibrated = [(f"{name} {c}", options | {"calibration": c}) for c in CALIBRATIONS] if name == BEST else []
        for shown, chosen in calibrated or [(name, options)]:
            chosen = {**chosen, "bits": width, "group_size": size}
            yield Setting(name=f"{shown} {form}", source="ours", bits=width, options=chosen, data_free=not uses_data)
    for name, (tool, options, uses_data) in PEERS.items():
        yield _peer(f"{name} {form}", width, tool, options | {"group-size": size}, uses_data)


def _peer(name: str, bits: int, tool: tuple[str, str], options: dict[str, Any], uses_data: bool) -> Setting:
    script, venv = tool
    return Setting(
        name=name
        if name.split()[0] in ("bitsandbytes", "gptqmodel", "llm-compressor", "auto-round")
        else f"peer {name}",
        source="peer",
        bits=bits,
        options=options,
        data_free=not uses_data,
        script=script,
        venv=venv,
    )
