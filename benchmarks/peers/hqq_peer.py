"""HQQ (mobiusml/hqq): data-free, half-quadratic optimisation of float zeros.

Its documented settings: axis 1 (what all its kernels run), optimize on, float zeros; 3 bits are documented too.
"""

from __future__ import annotations

from hqq.core.quantize import Quantizer
from peer_job import PeerJob, PeerResult, data_free, run
from torch import Tensor, float32


def quantize(job: PeerJob) -> PeerResult:
    settings = {"nbits": job.bits, "group_size": job.group_size, "axis": 1, "optimize": True, "round_zero": False}

    def one(weight: Tensor) -> Tensor:
        packed, meta = Quantizer.quantize(weight, **settings, device="cpu", compute_dtype=float32, bitpack=False)
        return Quantizer.dequantize(packed, meta).reshape(weight.shape)

    return PeerResult(data_free(job, one), job.bits + 32 / job.group_size, settings)


if __name__ == "__main__":
    run("hqq", quantize)
