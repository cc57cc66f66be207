"""`dlm-edge inspect`: what a folder holds."""

from __future__ import annotations

import click

from dlm_edge.cli.output import print_json, size


@click.command("inspect")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(path: str, as_json: bool) -> None:
    """Family, sizes and conventions of a checkpoint, a quantized checkpoint or a bundle; reads headers only."""
    import msgspec

    from dlm_edge.inspection import inspect_artefact

    found = inspect_artefact(path)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    dtypes = ", ".join(f"{count} {name}" for name, count in found.dtypes.items())
    print(f"{found.kind}: {found.family} ({found.architecture}), {found.parameters / 1e6:.1f} M parameters")
    print(f"size          {size(found.size_bytes)} ({dtypes})")
    print(f"cache         {size(found.cache_bytes_per_token)} per token")
    for key, value in found.conventions.items():
        print(f"{key:16}  {value}")
    if found.quantization is not None:
        q = found.quantization
        print(f"quantization  {q['method']}, {q['bits']} bits, groups of {q['group_size']}, {q['layers']} layers")
