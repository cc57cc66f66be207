"""`dlm-edge convert`: a quantized checkpoint in the layout of another tool."""

from __future__ import annotations

import click

from dlm_edge.cli.output import print_json, progress_line, size

FORMATS = ("gptq", "gptq_v2", "awq", "compressed-tensors", "imatrix")


@click.command("convert")
@click.argument("checkpoint", metavar="CKPT")
@click.option("-o", "--output", metavar="OUT", required=True, help="Folder to write (imatrix: file); must not exist.")
@click.option("--format", "format", type=click.Choice(FORMATS), required=True)
@click.option("--restart", is_flag=True, help="Replace an earlier output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(checkpoint: str, output: str, format: str, restart: bool, as_json: bool) -> None:
    """Write the quantized checkpoint CKPT in the layout of another tool, for vLLM, SGLang or LMDeploy.

    Codes, scales and zero points stay what they are; what the format cannot hold is refused.
    """
    import msgspec

    from dlm_edge.conversion import convert

    report = convert(checkpoint, output, format=format, restart=restart, progress=progress_line)
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    print(f"written   {report.output}   {size(report.size_bytes)} in {report.seconds:.1f} s")
    print(f"format    {report.format}, {report.layers} linear layers")
    if report.format != "imatrix":
        print("next      serve the folder with vLLM, SGLang or LMDeploy")
