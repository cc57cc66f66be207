"""llm-compressor (vllm-project): GPTQ, AWQ and SmoothQuant W8A8 with the recipes of its documentation.

`clean` is its own way: a stock transformers model, clean causal text, layer by layer. `masked` hands the same
modifiers ids, positions and 4-D attention masks of masked states through its basic pipeline (the tracer of the
layer-wise one refuses such masks), so later layers do not see what earlier ones lost; filling tokens are counted.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, forward_quantize
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from peer_job import PeerJob, PeerResult, grid_bits, run
from torch import Tensor
from torch.utils.data import DataLoader
from transformers_model import masked_inputs, module_name, norm_weights, reloaded, unused_tokenizer

# AWQ pins the memory of what it caches, which torch refuses on machines without an accelerator.
if not torch.accelerator.is_available():
    IntermediatesCache.pin_memory = lambda self, *_: None


def scheme(job: PeerJob) -> QuantizationScheme:
    if job.variant == "w8a8":
        weights = QuantizationArgs(num_bits=8, symmetric=True, strategy="channel")
        inputs = QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
        return QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    symmetric = job.zero == "symmetric"
    weights = QuantizationArgs(num_bits=job.bits, symmetric=symmetric, strategy="group", group_size=job.group_size)
    return QuantizationScheme(targets=["Linear"], weights=weights)


def recipe(job: PeerJob) -> list[Any]:
    groups = {"config_groups": {"group_0": scheme(job)}, "ignore": ["lm_head"]}
    return {
        "gptq": lambda: [GPTQModifier(**groups)],
        "awq": lambda: [AWQModifier(duo_scaling="both"), QuantizationModifier(**groups)],
        "w8a8": lambda: [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(**groups)],
        "rtn": lambda: [QuantizationModifier(**groups)],
    }[job.variant]()


def inputs(job: PeerJob) -> list[dict[str, Tensor]]:
    if job.calibration == "masked":
        return [masked_inputs(batch) for batch in job.batches]
    return [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in job.rows]


def quantize(job: PeerJob) -> PeerResult:
    with tempfile.TemporaryDirectory() as folder:
        return quantize_in(job, folder)


def quantize_in(job: PeerJob, folder: str) -> PeerResult:
    model, examples = reloaded(job, folder), inputs(job)
    pipeline = "basic" if job.calibration == "masked" else "independent"
    loader = DataLoader(examples, batch_size=None)
    oneshot(
        model=model,
        processor=unused_tokenizer(),
        dataset=loader,
        recipe=recipe(job),
        num_calibration_samples=len(examples),
        pipeline=pipeline,
    )
    weights = norm_weights(model, job)  # scaled by AWQ and SmoothQuant
    for role in job.roles:
        module = model.get_submodule(module_name(role))
        weights[role] = forward_quantize(module, module.weight, "weight", module.quantization_scheme.weights)
    settings = {"modifiers": job.variant, "pipeline": pipeline, "symmetric": job.zero == "symmetric"}
    if job.variant == "w8a8":
        return PeerResult(weights, 8.0 + 16 / job.spec.hidden_size, settings, activations="int8")
    return PeerResult(weights, grid_bits(job.bits, job.group_size, job.zero), settings)


if __name__ == "__main__":
    run("llmcompressor", quantize, ("gptq", "awq", "w8a8", "rtn"))
