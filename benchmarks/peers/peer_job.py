"""What every adapter of a peer package shares: its command line, the weights it gets and the weights it gives back.

    PYTHONPATH=. FOLDER/others/bin/python benchmarks/peers/hqq_peer.py --weights IN.safetensors \\
        --states STATES.safetensors --bits 4 --group-size 32 --calibration clean --out OUT.safetensors

Weights lie under our role names in float32, with the ModelSpec as JSON in the header. States (benchmarks/quality/
peer_files.py writes them) are rows of clean token ids, and batches of partly hidden ones with their attention masks.
The result holds the dequantized weights of the linear layers, and in its header what was done: seconds of the peer's
own work without imports, bits per weight, settings, version, and whether activations are to be rounded to int8.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Attend, DiffusionTransformer, dense_attention

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """ids and weights [rows, seq], positions [seq], mask bool [seq, seq]; weight 0 is filling that does not count."""

    ids: Tensor
    positions: Tensor
    weights: Tensor
    mask: Tensor

    @property
    def attend(self) -> Attend:
        return dense_attention(None if bool(self.mask.all()) else self.mask)


@dataclass(frozen=True, slots=True)
class PeerJob:
    """`zero` is symmetric or asymmetric; `variant` chooses between the algorithms of one package."""

    spec: ModelSpec
    weights: dict[str, Tensor]
    rows: list[Tensor]  # clean token ids, one text each
    batches: list[MaskedBatch]
    bits: int
    group_size: int
    calibration: str
    zero: str
    variant: str
    seed: int

    @property
    def roles(self) -> list[str]:
        return [f"layers.{i}.{name}" for i in range(self.spec.n_layers) for name in LINEARS]


@dataclass(frozen=True, slots=True)
class PeerResult:
    """`weights` by role: all linears, and what else the package changed; `bits_per_weight` with scales and zeros."""

    weights: dict[str, Tensor]
    bits_per_weight: float
    settings: dict[str, Any]
    activations: str = "float"  # or int8: rounded per token


def run(package: str, quantize: Callable[[PeerJob], PeerResult], variants: tuple[str, ...] = ("",)) -> None:
    args = parse(variants)
    torch.manual_seed(args.seed)
    job = read_job(args)
    started = time.perf_counter()
    result = quantize(job)
    seconds = time.perf_counter() - started
    missing = set(job.roles) - set(result.weights)
    if missing:
        raise SystemExit(f"{package}: the weights of {sorted(missing)[:4]} are missing")
    about = {
        "package": f"{package} {importlib.metadata.version(package)}",
        "seconds": seconds,
        "bits_per_weight": result.bits_per_weight,
        "settings": result.settings,
        "activations": result.activations,
    }
    tensors = {role: weight.detach().float().contiguous().clone() for role, weight in result.weights.items()}
    save_file(tensors, args.out, {"about": json.dumps(about)})


def parse(variants: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--states", type=Path, required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True, help="0: one scale per output channel")
    parser.add_argument("--calibration", choices=["clean", "masked"], default="clean")
    parser.add_argument("--zero", choices=["symmetric", "asymmetric"], default="symmetric")
    parser.add_argument("--variant", choices=variants, default=variants[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def read_job(args: argparse.Namespace) -> PeerJob:
    with safe_open(args.weights, "pt") as file:
        spec = msgspec.json.decode(file.metadata()["spec"], type=ModelSpec)
        weights = {name: file.get_tensor(name) for name in file.keys()}
    with safe_open(args.states, "pt") as file:
        n_rows, n_batches = (int(file.metadata()[key]) for key in ("rows", "batches"))
        rows = [file.get_tensor(f"rows.{i}") for i in range(n_rows)]
        parts = ("ids", "positions", "weights", "mask")
        batches = [MaskedBatch(*(file.get_tensor(f"batch.{i}.{p}") for p in parts)) for i in range(n_batches)]
    chosen = (args.bits, args.group_size, args.calibration, args.zero, args.variant, args.seed)
    return PeerJob(spec, weights, rows, batches, *chosen)


def family_model(job: PeerJob) -> DiffusionTransformer:
    """Our own torch module with the weights of the job."""
    model = DiffusionTransformer(job.spec)
    model.load_state_dict(job.weights, strict=not job.spec.tied_head)
    return model.eval().requires_grad_(False)


def grid_bits(bits: int, group_size: int, zero: str) -> float:
    """Bits per weight with one float16 scale, and one zero as wide as a code, for each group."""
    return bits + (16 + (bits if zero == "asymmetric" else 0)) / group_size


def data_free(job: PeerJob, quantize: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {role: quantize(job.weights[f"{role}.weight"]) for role in job.roles}
