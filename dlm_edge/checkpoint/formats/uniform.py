"""Formats whose config has one number of bits and one group size for the whole model."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_edge.checkpoint.formats.format import LayerToWrite
from dlm_edge.errors import JobError


def one_setting(layers: Sequence[LayerToWrite], format: str) -> tuple[int, int | None]:
    """Bits and group size (None: one scale per channel) of all layers. Raises E-QUANT when they differ."""
    if all(layer.group_size is None for layer in layers):
        groups: set[int | None] = {None}
    else:
        groups = {layer.record.group_size for layer in layers}
    for what, found in (("bits", {layer.record.bits for layer in layers}), ("groups", groups)):
        if len(found) > 1:
            raise JobError(
                "E-QUANT",
                f"{format} has one setting for all layers, this checkpoint has {what} of {sorted(map(str, found))}",
                "use compressed-tensors, or quantize with one setting for every layer",
            )
    return layers[0].record.bits, groups.pop()
