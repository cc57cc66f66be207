"""Which part of a step a node of the graph belongs to, by the name that export gave it.

linear     products with the weights of a layer, their biases, and rounding of what enters them
attention  rotary embedding, caches, page selection, attention itself, and keys that are made again
head       the last norm and what turns rows into logits
glue       norms, gates, residual sums, and everything about shapes

ONNX Runtime joins nodes and keeps the name of one of them. Our operators run as functions of standard operators where the
native library is not: these have names of their own, by number. A new node of the graph needs a line here; one
without is of kind `other`, which a test does not allow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "attention", "head", "glue", "other"]
KINDS: tuple[Kind, ...] = ("linear", "attention", "head", "glue", "other")
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
TOGETHER = ("qkv", "gate_up")  # several of them as one product
ROUNDING = "rounding"  # of activations to int8, shared by the linears that read them

LAYER = re.compile(r"^layers\.\d+\.")
OF_LAYER = re.compile(r"\.\d+$")  # outputs of the graph are named so: k_cache_out.3
JOINED = re.compile(r"(/\w*Fusion\w*/?)?(_token_\d+)?$")  # what ONNX Runtime appends to the name it keeps
NUMBERED = re.compile(r"_\d+$")
INLINED = "_inlfunc_"

OPERATORS = {  # ours, whatever they are called
    "SelectPages", "PrefixBlockAttention", "PatternAttention", "QuantizeRows", "DequantizeRows", "RematerialiseRows",
}  # fmt: skip
STEP = r"(_biased|_float_zero|_group_sums|_zero_product|_int32|_unscaled|_row_scaled|_ordered|_outliers|_outlier_product|_sum\d+)?"
LINEAR = re.compile(rf"(?P<role>{'|'.join((*TOGETHER, *ROLES))}){STEP}")
ROUNDED = re.compile(r"\w+_(abs|peak|step|scale|scaled|rounded|shifted|u8|int8_values|rest\d+)")
HEAD = re.compile(rf"final_norm|hidden_rows|logit_hidden(_rows)?|logits|logits_(body|padded|cut){STEP}")
ATTENTION = re.compile(
    r"(all_)?(rope|positions)(_\w+)?|n_copies|[qkv]_(rope|float|split|heads|norm)|policy"
    r"|(active|attention|keys|[kvx])_(new|out|stored|rows_body|leaving|latents|remade|rows|both|batch|by_head|window|prefix)"
    r"|[kv]_cache_(first|half|out|new)|x_(cache_new|sum|delta|new_\w+)|(prefix|q|pattern)_\w*out"
    r"|capacity|n_slots|page_size|first_list|page_column|by_page|spread|flat|on_page|end|slots_positions|length|before"
    r"|window_(end|rows|keys|values)|after|outside|stored|readable|wanted|found|rows|n_rows|n_and_block|n_up|n_blocks"
    r"|compact_start|n_scales|leaving_shape|n_leaving|token_group|channel_group|new_\w+"
)
GLUE = re.compile(
    r"embed(_\w+)?|(attn|mlp)_norm|after_(attention|mlp)|gate_(silu|sigmoid)|gated|ids_shape|window_(length|offsets)|zero|one"
)
BY_NAME: dict[Kind, re.Pattern[str]] = {"head": HEAD, "attention": ATTENTION, "glue": GLUE}
# Nodes that ONNX Runtime puts between others, named by what they do.
INSERTED = re.compile(r"(Squeeze|Unsqueeze|Transpose|Cast|Reshape|Identity|Split|InsertedPrecisionFreeCast_\w*|)")


@dataclass(frozen=True, slots=True)
class NodeKind:
    """`role` of a linear: q ... down, one of TOGETHER, or rounding; otherwise empty."""

    kind: Kind
    role: str = ""


def kind_of(name: str, op_type: str, *, native_operators: bool = True) -> NodeKind:
    """Of a node as ONNX Runtime names it."""
    if op_type in OPERATORS:
        return NodeKind("attention")
    is_body = INLINED in name or bool(NUMBERED.search(JOINED.sub("", name))) and name.startswith(op_type + "_")
    if not native_operators and (is_body or not JOINED.sub("", name)):
        return NodeKind("attention")
    local = OF_LAYER.sub("", LAYER.sub("", JOINED.sub("", name)))
    found = LINEAR.fullmatch(local)
    if found:
        return NodeKind("linear", found["role"])
    for kind, pattern in BY_NAME.items():
        if pattern.fullmatch(local):
            return NodeKind(kind)
    if ROUNDED.fullmatch(local):
        return NodeKind("linear", ROUNDING)
    if INSERTED.fullmatch(local):
        return NodeKind("attention" if op_type == "FusedMatMul" else "glue")
    return NodeKind("other")
