"""The same function with outliers in it: the test bench of everything that treats outliers.

Some channels of both norm gains of every layer are multiplied by s, and the columns of q, k, v (gate, up) that read them
divided; so are some rows of up and the columns of down. Any s keeps the function up to the rounding of float32, so
the checkpoint is written in float32; what is rounded to eight bits per token afterwards loses its small channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlm_edge import files
from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.checkpoint.safetensors_writer import StoredTensor, write_layer_file
from dlm_edge.checkpoint.shards import INDEX
from dlm_edge.errors import UsageProblem
from dlm_edge.models.streamed import load_layer
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.folding import fold

INJECTED = (("q", "k", "v"), ("gate", "up"), ("down",))
COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md")


@dataclass(frozen=True, slots=True)
class Injection:
    """`scale` is s; `channels` of each input are made outliers, other ones in every layer."""

    scale: float = 100.0
    channels: int = 3
    seed: int = 0

    def scales(self, layer: int, place: int, width: int) -> Tensor:
        """[width]: what the inputs of `INJECTED[place]` are divided by."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + layer * len(INJECTED) + place)
        scales = torch.ones(width)
        scales[torch.randperm(width, generator=generator)[: self.channels]] = 1 / self.scale
        return scales

    def apply(self, layer: Layer, number: int) -> None:
        """Change layer `number` in place; its function stays."""
        for place, linears in enumerate(INJECTED):
            fold(layer, linears, self.scales(number, place, getattr(layer, linears[0]).in_features))


def inject_outliers(
    source: str | Path, out_folder: str | Path, *, scale: float = 100.0, channels: int = 3, seed: int = 0
) -> Path:
    """Write a checkpoint that computes what `source` does, with outliers; a float32 file for each layer.

    Raises E-USAGE for a scale or number of channels that makes no sense and for a quantized source, E-EXISTS for a
    folder that holds anything, and whatever opening the source raises.
    """
    checkpoint, out = open_checkpoint(source), Path(out_folder)
    if checkpoint.record is not None:
        raise UsageProblem("E-USAGE", f"{checkpoint.name} is quantized", "start from the original checkpoint")
    if not scale > 0 or not 0 < channels <= checkpoint.spec.hidden_size:
        raise UsageProblem("E-USAGE", f"scale {scale}, {channels} channels", "a positive scale, at least one channel")
    if out.exists() and any(out.iterdir()):
        raise UsageProblem("E-EXISTS", f"{out} is not empty", "choose another folder")
    files.make_folder(out)
    with torch.no_grad():
        where = _write_weights(checkpoint, out, Injection(scale, channels, seed))
    size = sum((out / name).stat().st_size for name in set(where.values()))
    files.write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))})
    files.write_json(out / "config.json", {**checkpoint.config, "torch_dtype": "float32"})
    for name in COPIED:
        if (checkpoint.path / name).is_file():
            files.write_file(out / name, (checkpoint.path / name).read_bytes())
    return out


def _write_weights(checkpoint: Checkpoint, out: Path, injection: Injection) -> dict[str, str]:
    """The file of every stored tensor. One layer is in memory at a time."""
    count, where = checkpoint.spec.n_layers + 1, dict[str, str]()
    for number in range(count):
        if number < checkpoint.spec.n_layers:
            layer = load_layer(checkpoint, number)
            injection.apply(layer, number)
            weights = {f"layers.{number}.{name}": weight for name, weight in layer.state_dict().items()}
        else:
            outer = [role for role in checkpoint.roles() if not role.startswith("layers.")]
            weights = {role: torch.from_numpy(checkpoint.load(role)) for role in outer}
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        stored = [
            StoredTensor(checkpoint.tensor_name(role), "F32", tuple(w.shape), [w.numpy().astype("<f4").tobytes()])
            for role, w in weights.items()
        ]
        write_layer_file(out / file, stored)
        where |= {tensor.name: file for tensor in stored}
    return where
