"""A setting to the model that it makes: quantized in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.errors import EnvironmentProblem, JobError
from dlm_edge.models import load_model
from dlm_edge.models.int8_linear import with_int8_activations
from dlm_edge.models.transformer import DiffusionTransformer

from .peer_files import read_result, write_states, write_weights
from .plain_rounding import plain_rtn
from .settings import Setting

PACKAGE = Path(sys.modules["dlm_edge"].__file__ or "").resolve().parent
PEERS = Path(__file__).resolve().parent.parent / "peers"
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
OURS = """
import json, sys
from dlm_edge.quant import quantize
model, out, about, options = sys.argv[1:]
report = quantize(model, out, **json.loads(options))
open(about, "w").write(json.dumps({"seconds": report.seconds, "fallbacks": report.fallbacks}))
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """`seconds` and `peak_mib` are of the quantization; `about` is what the tool said about itself."""

    model: DiffusionTransformer
    bits_per_weight: float
    seconds: float
    peak_mib: float | None
    about: dict[str, Any] = field(default_factory=dict)


class Workshop:
    """Makes candidates of one model; keeps the files that peers read in `folder`."""

    def __init__(self, source: Checkpoint, model: DiffusionTransformer, folder: Path, venvs: Path | None) -> None:
        self.source, self.model, self.folder, self.venvs = source, model, folder, venvs

    def make(self, setting: Setting, seed: int) -> Candidate:
        """Raises E-QUANT with the tool's last lines when it fails, E-DEPENDENCY when its packages are not given."""
        return {"plain": self._plain, "ours": self._ours, "peer": self._peer}[setting.source](setting, seed)

    def _plain(self, setting: Setting, seed: int) -> Candidate:
        size, asymmetric = setting.options["group_size"], setting.options.get("asymmetric", False)
        weights = {r: plain_rtn(self._linear(r), setting.bits, size, asymmetric=asymmetric) for r in self.linears()}
        overhead = (16 + setting.bits * asymmetric) / (size or self.model.spec.hidden_size)
        activations = "int8" if setting.options.get("int8") else "float"
        return Candidate(self.with_weights(weights, activations), setting.bits + overhead, 0.0, None)

    def _ours(self, setting: Setting, seed: int) -> Candidate:
        options = setting.options if setting.data_free else {**setting.options, "seed": seed}
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            out, about = Path(name) / "out", Path(name) / "about.json"
            arguments = [str(self.source.path), str(out), str(about), json.dumps(options)]
            peak = run([sys.executable, "-c", OURS, *arguments], dict(os.environ), setting.name)
            said, quantized = json.loads(about.read_text()), open_checkpoint(out)
            names = [f"{role}.weight" for role in self.linears()]
            stored = sum(quantized.stored_bytes(name) for name in names)
            n_weights = sum(quantized.shape(name)[0] * quantized.shape(name)[1] for name in names)
            return Candidate(load_model(out), 8 * stored / n_weights, said.pop("seconds"), peak, said)

    def _peer(self, setting: Setting, seed: int) -> Candidate:
        if self.venvs is None:
            raise EnvironmentProblem(
                "E-DEPENDENCY", f"{setting.name} needs its packages", "give --peers FOLDER of setup.sh"
            )
        weights, states = self.folder / "weights.safetensors", self.folder / f"states-{seed}.safetensors"
        if not weights.exists():
            write_weights(self.source, weights)
        if not states.exists():
            write_states(self.source, states, seed)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            # Only dlm_edge: beside it lie folders that shadow packages which peers look for (kernels).
            (Path(name) / "dlm_edge").symlink_to(PACKAGE)
            out = Path(name) / "out.safetensors"
            options = {"weights": weights, "states": states, "bits": setting.bits, "seed": seed, "out": out}
            arguments = [f"--{k}={v}" for k, v in (options | setting.options).items()]
            python = str(self.venvs.resolve() / setting.venv / "bin" / "python")
            peak = run(
                [python, str(PEERS / setting.script), *arguments], {**os.environ, "PYTHONPATH": name}, setting.name
            )
            changed, about = read_result(out)
        model = self.with_weights(changed, about.pop("activations"))
        return Candidate(model, about.pop("bits_per_weight"), about.pop("seconds"), peak, about)

    def linears(self) -> list[str]:
        return [f"layers.{i}.{name}" for i in range(self.model.spec.n_layers) for name in LINEARS]

    def _linear(self, role: str) -> Tensor:
        weight = self.model.get_submodule(role).weight
        assert isinstance(weight, Tensor)
        return weight.data

    def with_weights(self, weights: dict[str, Tensor], activations: str) -> DiffusionTransformer:
        """A copy of the model in full precision with these `weights` by role."""
        model = copy.deepcopy(self.model)
        for role, weight in weights.items():
            module = model.get_submodule(role)
            module.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
            if activations == "int8" and role.rsplit(".", 1)[1] in LINEARS:
                owner, leaf = role.rsplit(".", 1)
                setattr(model.get_submodule(owner), leaf, with_int8_activations(module))
        return model.eval()


def run(command: Sequence[str], environment: dict[str, str], what: str) -> float:
    """Run to the end; peak memory of the process in MiB. Raises E-QUANT with its last lines."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            last = " | ".join(line.strip() for line in log.read().splitlines()[-6:])
            raise JobError("E-QUANT", f"{what} ended with {process.returncode}: {last}", "run its adapter by itself")
    return usage.ru_maxrss / 1024
