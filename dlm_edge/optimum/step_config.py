"""What optimum has to know of our graph: names, dynamic axes and dummy inputs, one class per family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from optimum.exporters.base import ExporterConfig

from dlm_edge.errors import UsageProblem
from dlm_edge.optimum import dimensions
from dlm_edge.optimum.dimensions import StepDimensions
from dlm_edge.optimum.dummy_inputs import StepInputGenerator

Axes = dict[str, dict[int, str]]
# Of one layer, in the order of the graph.
CACHES: Axes = {"k_cache": {2: "capacity"}, "v_cache": {2: "capacity"}}
PAGE_BOUNDS: Axes = {"page_low": {2: "slots"}, "page_high": {2: "slots"}, "page_scale": {2: "slots"}}
STATE: Axes = {
    "q_last": {2: "state_rows"},
    "q_stored": {2: "state_rows"},
    "prefix_out": {2: "state_rows"},
    "prefix_lse": {2: "state_rows"},
    "masses": {2: "slots"},
}


class StepConfig(ExporterConfig):
    """Inputs and outputs of the step graph with plain caches, in its order; `dlm_edge.export.graph` defines them.

    config       a transformers config, or any object with the keys of the family's config.json as attributes
    float_dtype  of the caches: fp32 for bundles of the cpu target, fp16 for those of cuda

    Raises E-USAGE for other number types: the graph has int64 ids and no other float caches.
    """

    NORMALIZED_CONFIG_CLASS: ClassVar[Callable[[Any], StepDimensions]]
    DUMMY_INPUT_GENERATOR_CLASSES = (StepInputGenerator,)
    # In float32. Measured over random checkpoints of every family, 5 seeds, logits up to 14: at most 1.9e-5.
    ATOL_FOR_VALIDATION = 1e-4

    def __init__(self, config: Any, task: str, int_dtype: str = "int64", float_dtype: str = "fp32") -> None:
        if int_dtype != "int64":
            raise UsageProblem("E-USAGE", f"int_dtype {int_dtype!r} does not fit the step graph", "known: int64")
        if float_dtype not in ("fp32", "fp16"):
            message = f"float_dtype {float_dtype!r} does not fit the step graph"
            raise UsageProblem("E-USAGE", message, "known: fp32 (target cpu), fp16 (target cuda)")
        super().__init__(config, task, int_dtype=int_dtype, float_dtype=float_dtype)

    @property
    def dimensions(self) -> StepDimensions:
        found: StepDimensions = self._normalized_config
        return found

    @property
    def inputs(self) -> Axes:
        window = {0: "copies", 1: "window"} if self.float_dtype == "fp32" else {1: "window"}
        axes: Axes = {"input_ids": window, "start": {}, "cache_len": {}, "attn_block": {}}
        axes |= {"logit_rows": {0: "rows"}, "policy": {}, "drift": {}}
        for i in range(self.dimensions.num_layers):
            axes |= {f"{name}.{i}": of for name, of in (CACHES | PAGE_BOUNDS | STATE).items()}
        return axes

    @property
    def outputs(self) -> Axes:
        axes: Axes = {"logits": {0: "rows"}}
        for i in range(self.dimensions.num_layers):
            axes |= {f"{name}_out.{i}": of for name, of in (STATE | CACHES).items()} | {f"stats.{i}": {}}
        return axes

    @property
    def values_override(self) -> None:
        """The graph is built from the checkpoint as it is; there is no config to switch a cache off in."""
        return None


class LLaDAStepConfig(StepConfig):
    NORMALIZED_CONFIG_CLASS = dimensions.LLADA_DIMENSIONS


class DreamStepConfig(StepConfig):
    NORMALIZED_CONFIG_CLASS = dimensions.DREAM_DIMENSIONS


class SDARStepConfig(StepConfig):
    NORMALIZED_CONFIG_CLASS = dimensions.SDAR_DIMENSIONS


class FastDLLMv2StepConfig(StepConfig):
    NORMALIZED_CONFIG_CLASS = dimensions.FAST_DLLM_V2_DIMENSIONS
