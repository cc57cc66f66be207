"""AutoRound (intel/auto-round): rounding and ranges learned by signed gradient descent, layer by layer.

Variants are the package's own presets: `default` 200 iterations, `light` 50 iterations at a learning rate of 5e-3. The
data are 128 windows of 256 tokens, cut from the joined texts, because it drops everything shorter than its sequence
length; its default length of 2048 is beyond what these texts give. Its own way is causal, and it has no other.
"""

from __future__ import annotations

from typing import Any

import torch
from auto_round import AutoRound
from peer_job import PeerJob, PeerResult, grid_bits, run
from torch import Tensor
from transformers_model import linear_weights, transformers_model, unused_tokenizer

SAMPLES, LENGTH = 128, 256
PRESETS: dict[str, dict[str, Any]] = {"default": {"iters": 200}, "light": {"iters": 50, "lr": 5e-3}}


def windows(job: PeerJob) -> list[Tensor]:
    end = torch.tensor([job.spec.conventions.eos_id])
    joined = torch.cat([part for row in job.rows for part in (row, end)])
    return list(joined[: len(joined) // LENGTH * LENGTH].view(-1, 1, LENGTH))[:SAMPLES]


def quantize(job: PeerJob) -> PeerResult:
    model, data = transformers_model(job), windows(job)
    settings = {"bits": job.bits, "group_size": job.group_size, "sym": job.zero == "symmetric", **PRESETS[job.variant]}
    with torch.enable_grad():
        rounded = AutoRound(
            model,
            tokenizer=unused_tokenizer(),
            dataset=data,
            nsamples=len(data),
            seqlen=LENGTH,
            batch_size=8,
            device_map="cpu",
            seed=job.seed,
            **settings,
        )
        model, _ = rounded.quantize()
    settings |= {"nsamples": len(data), "seqlen": LENGTH}
    return PeerResult(linear_weights(model, job), grid_bits(job.bits, job.group_size, job.zero), settings)


if __name__ == "__main__":
    run("auto-round", quantize, ("default", "light"))
