"""`dlm-edge export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import click

from dlm_edge.cli.output import print_json, progress_line, size


@click.command("export")
@click.argument("checkpoint", metavar="CKPT")
@click.option("-o", "--output", metavar="BUNDLE", required=True, help="Folder to write; must not exist yet.")
@click.option("--target", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--profile",
    metavar="PROFILE",
    default="auto",
    show_default=True,
    help="How the layers of a CPU bundle compute: fp32, w4, w4a8, w4a8-blocks, w8, w8a8, w8a8-qlinear, or auto, which times those that fit the checkpoint's weights on this machine.",
)
@click.option(
    "--cache",
    metavar="LAYOUT[,group=N]",
    default="kv",
    show_default=True,
    help="How keys and values are stored: kv, kv-fp16, kv-int8, kv-int4, kv-int4x2, x-int8, x-int4, x-int3, x-int2, x-cl4, x-cl3, x-cl2, or none (full attention, every step computes everything).",
)
@click.option("--restart", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(checkpoint: str, output: str, target: str, profile: str, cache: str, restart: bool, as_json: bool) -> None:
    """Export the checkpoint folder CKPT (or `reference`, `reference-full`) to ONNX.

    The graph is compared with the source model on real prompts before the bundle counts as finished.
    """
    import msgspec

    from dlm_edge.export import export

    report = export(
        checkpoint, output, target=target, profile=profile, cache=cache, restart=restart, progress=progress_line
    )
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    parity = report.parity
    print(f"written   {report.output}   {size(report.size_bytes)} in {report.seconds:.1f} s")
    if report.profile:
        print(f"profile   {report.profile}")
    print(f"parity    {parity['max_rel_error']:.1e} of the largest logit over {parity['prompts']} prompts")
    print(f"next      dlm-edge generate {report.output} -p TEXT")
