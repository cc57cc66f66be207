"""Checkpoint formats of other quantizers: `READERS` by their quant_method, `WRITERS` by our name of the format."""

from dlm_edge.checkpoint.formats import awq, bitsandbytes, compressed_tensors, gptq
from dlm_edge.checkpoint.formats.format import Reader, Writer

READERS: dict[str, Reader] = {
    reader.method: reader for reader in (gptq.READER, awq.READER, compressed_tensors.READER, bitsandbytes.READER)
}
WRITERS: dict[str, Writer] = {
    "gptq": gptq.writer("gptq"),
    "gptq_v2": gptq.writer("gptq_v2"),
    "awq": awq.WRITER,
    "compressed-tensors": compressed_tensors.WRITER,
}

__all__ = ["READERS", "WRITERS", "Reader", "Writer"]
