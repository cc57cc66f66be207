"""`dlm-edge estimate`: memory, disk and time before anything is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dlm_edge.cli.output import print_json, size, table

if TYPE_CHECKING:
    from dlm_edge.run_memory import RunMemory


@click.command("estimate")
@click.argument("model")
@click.option("--context", "contexts", type=int, multiple=True, metavar="N", help="Tokens of prompt and text together.")
@click.option("--recipe", metavar="NAME", help="Of quantization, or none. Default: w4 for weights in floating point.")
@click.option("--cache", "caches", multiple=True, metavar="LAYOUT[,group=N]", help="Default: all that fit the model.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, contexts: tuple[int, ...], recipe: str | None, caches: tuple[str, ...], as_json: bool) -> None:
    """What quantizing, exporting and running MODEL takes on the CPU; nothing is written.

    MODEL is a checkpoint folder, a quantized one, a bundle, `reference` or `reference-full`.
    """
    import msgspec

    from dlm_edge.estimation import estimate

    found = estimate(model, contexts=contexts, recipe=recipe, caches=caches)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    if found.quantize is not None:
        needs, disk = size(found.quantize["ram_bytes"]), size(found.quantize["disk_bytes"])
        print(
            f"quantize  {needs} of memory, {disk} on disk, about {found.quantize['seconds']:.0f} s (recipe {found.recipe})"
        )
    if found.export is not None:
        print(f"export    {size(found.export['ram_bytes'])} of memory, {size(found.export['disk_bytes'])} on disk")
    if found.available_bytes is not None:
        print(f"there is  {size(found.available_bytes)} of memory now")
    print(run_table(found.run))


def run_table(rows: list[RunMemory]) -> str:
    """Memory of a running model for every context and layout."""
    lines = [
        ["run", "context", "bytes per token", "caches", "weights", "activations", "logits", "memory", "sparse adds"]
    ]
    for row in rows:
        parts = (row.cache_bytes, row.weight_bytes, row.activation_bytes, row.logit_bytes, row.ram_bytes)
        name = f"{row.cache} (exported)" if row.is_own else row.cache
        numbers = [str(row.context), f"{row.cache_bytes_per_token:.0f}", *map(size, parts), size(row.sparse_bytes)]
        lines.append([name, *numbers])
    return table(lines)
