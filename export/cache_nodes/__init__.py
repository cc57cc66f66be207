"""Attention of one layer over each cache layout: where keys and values of the prefix come from, and what is stored.

FloatCache     keys and values in the graph's own hands: written in place, read by the operator.
QuantizedKv    codes, read by the operator; the window's keys and values leave the graph for the caller to store. Codes in
               two planes come with one more input of the graph, `planes`: how many of them a run reads.
StoredInput    XQuant: the caller stores X, what enters the projections. Rows of the chosen pages come back and go through
               the projections together with the window's own rows.
StoredLatent   XQuant for grouped heads: rows of K W^-1 and V W^-1, as wide as keys and values.
LayerDeltas    XQuant-CL: as StoredInput, where each layer adds its difference to the X of the layer below.
In families with full attention what a refresh stores leaves as codes already: leaving_codes.py.
WholeSequence  nothing is stored: the window is the whole sequence, and attends to itself by kept pairs of blocks.

runtime/layouts/ is the other side of each: its arrays have the names of the inputs here.
"""

from __future__ import annotations

from dlm_edge.export.cache_nodes.contract import CacheNodes, Tensors, Window
from dlm_edge.export.cache_nodes.layer_deltas import LayerDeltas
from dlm_edge.export.cache_nodes.leaving_codes import leaves_codes
from dlm_edge.export.cache_nodes.rematerialised import Rematerialised, StoredInput
from dlm_edge.export.cache_nodes.stored_keys import FloatCache, QuantizedKv
from dlm_edge.export.cache_nodes.stored_latent import StoredLatent
from dlm_edge.export.cache_nodes.whole_sequence import WholeSequence
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.layouts import layout_kind

__all__ = ["CacheNodes", "Rematerialised", "Tensors", "WholeSequence", "Window", "cache_nodes"]


def cache_nodes(layout: str, spec: ModelSpec) -> CacheNodes:
    """Of a layout that runtime/layouts knows."""
    kind, as_codes = layout_kind(layout), leaves_codes(spec)
    if kind.form == "none":
        return WholeSequence()
    if kind.form == "float":
        return FloatCache(half=kind.bits == 16)
    if kind.form == "kv":
        return QuantizedKv(kind.bits, as_codes, kind.has_planes)
    if kind.form == "x":
        return StoredInput(kind.bits, as_codes)
    if kind.form == "latent":
        return StoredLatent(kind.bits, as_codes)
    return LayerDeltas(kind.bits, as_codes, spec.n_layers)
