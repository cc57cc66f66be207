"""GPTQModel (ModelCloud/GPTQModel): GPTQ with its defaults, group-aware order and damping 0.05 raised as needed.

`--calibration clean`: the package's own way from end to end, a stock transformers model and clean causal text.
`--calibration masked`: its GPTQ class on each linear of our module, fed with the inputs that masked states give. This is
more than the package offers: nothing in it makes such states. Filling tokens are left out, other weights not known to it.
`--variant search` turns on the package's range search (mse 2.4), which its documentation advises for few bits.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from peer_job import PeerJob, PeerResult, family_model, grid_bits, run
from torch import Tensor, nn
from transformers_model import module_name, transformers_model

from dlm_edge.models.transformer import Layer, rope_tables

# On machines with few cores the package plans one CPU worker, and then fails because its loader asks for two.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


def config_of(job: PeerJob) -> tuple[QuantizeConfig, dict[str, Any]]:
    search = {"mse": 2.4} if job.variant == "search" else {}
    settings = {"bits": job.bits, "group_size": job.group_size, "sym": job.zero == "symmetric", **search}
    # Format v2 differs in storage only: zeros as they are, where v1 stores them less one and subtracts that on loading.
    return QuantizeConfig(**settings, format="gptq_v2", offload_to_disk=False, device="cpu"), settings


def quantize(job: PeerJob) -> PeerResult:
    config, settings = config_of(job)
    weights = masked(job, config) if job.calibration == "masked" else clean(job, config)
    settings |= {"damp_percent": config.damp_percent, "act_group_aware": config.act_group_aware}
    return PeerResult(weights, grid_bits(job.bits, job.group_size, "asymmetric"), settings)


def clean(job: PeerJob, config: QuantizeConfig) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        transformers_model(job).save_pretrained(folder)
        model = GPTQModel.load(folder, config)
        examples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in job.rows]
        model.quantize(examples, batch_size=1, tokenizer=None)
    packed = {role: model.model.get_submodule(module_name(role)) for role in job.roles}
    return {role: module.dequantize_weight().T for role, module in packed.items()}


@torch.inference_mode()
def masked(job: PeerJob, config: QuantizeConfig) -> dict[str, Tensor]:
    """Linears in the order in which they run; each sees the inputs that the quantized ones before it give."""
    model = family_model(job)
    hidden = [model.embed(batch.ids) for batch in job.batches]
    for layer in model.layers:
        normed = [layer.attn_norm(x) for x in hidden]
        round_linears([layer.q, layer.k, layer.v], normed, job, config)
        attended = attention_outputs(layer, normed, job)
        round_linears([layer.o], attended, job, config)
        hidden = [x + layer.o(a) for x, a in zip(hidden, attended, strict=True)]
        normed = [layer.mlp_norm(x) for x in hidden]
        round_linears([layer.gate, layer.up], normed, job, config)
        gated = [F.silu(layer.gate(h)) * layer.up(h) for h in normed]
        round_linears([layer.down], gated, job, config)
        hidden = [x + layer.down(g) for x, g in zip(hidden, gated, strict=True)]
    return {role: model.get_submodule(role).weight for role in job.roles}


def round_linears(linears: list[nn.Linear], inputs: list[Tensor], job: PeerJob, config: QuantizeConfig) -> None:
    """Replace the weights of `linears`, which share their `inputs`, one [rows, seq, in] per batch."""
    tasks = [GPTQ(linear, config) for linear in linears]
    for x, batch in zip(inputs, job.batches, strict=True):
        for task in tasks:
            task.add_batch(x[batch.weights > 0][None], None)
    for linear, task in zip(linears, tasks, strict=True):
        task.quantizer.configure(perchannel=True)
        linear.weight.data = task.quantize()[0].float()


def attention_outputs(layer: Layer, normed: list[Tensor], job: PeerJob) -> list[Tensor]:
    """What enters the output projection, per batch."""
    caught: list[Tensor] = []
    hook = layer.o.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    for h, batch in zip(normed, job.batches, strict=True):
        layer.attention(h, *rope_tables(batch.positions, job.spec.head_dim, job.spec.rope_theta), batch.attend)
    hook.remove()
    return caught


if __name__ == "__main__":
    run("gptqmodel", quantize, ("default", "search"))
