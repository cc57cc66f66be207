"""bitsandbytes: NF4 and FP4 in blocks of 64 (its default) or 32 consecutive weights of a row, data-free, 4 bits only."""

from __future__ import annotations

from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peer_job import PeerJob, PeerResult, data_free, run
from torch import Tensor


def quantize(job: PeerJob) -> PeerResult:
    if job.bits != 4:
        raise SystemExit("bitsandbytes has these codebooks at 4 bits only")
    settings = {"blocksize": job.group_size, "quant_type": job.variant, "compress_statistics": False}

    def one(weight: Tensor) -> Tensor:
        packed, state = quantize_4bit(weight, **settings)
        return dequantize_4bit(packed, state)

    return PeerResult(data_free(job, one), 4 + 32 / job.group_size, settings)


if __name__ == "__main__":
    run("bitsandbytes", quantize, ("nf4", "fp4"))
