"""Our step graph in optimum's registry of exporters, beside `onnx` and `openvino`."""

from __future__ import annotations

from pathlib import Path

from optimum.exporters.tasks import TasksManager
from transformers import PretrainedConfig

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.families import FAMILIES
from dlm_edge.optimum.step_config import (
    DreamStepConfig,
    FastDLLMv2StepConfig,
    LLaDAStepConfig,
    SDARStepConfig,
    StepConfig,
)

BACKEND = "dlm_edge"
LIBRARY = "transformers"
# What the model cards call it, and what one step does. The caches are plain inputs: there is no "-with-past" variant.
TASKS = ("text-generation", "fill-mask")

CONFIGS: dict[str, type[StepConfig]] = {  # by family, as in dlm_edge.families
    "llada": LLaDAStepConfig,
    "dream": DreamStepConfig,
    "sdar": SDARStepConfig,
    "fast_dllm_v2": FastDLLMv2StepConfig,
}


def register() -> None:
    """Make every family known to `TasksManager` as the backend `dlm_edge`; a second call changes nothing."""
    register_for_backend = TasksManager.create_register(BACKEND)
    for family, config_class in CONFIGS.items():
        for model_type in FAMILIES[family].model_types:
            register_for_backend(model_type, *TASKS, library_name=LIBRARY)(config_class)


def exporter_config(
    model: str | Path, *, task: str = "text-generation", int_dtype: str = "int64", float_dtype: str = "fp32"
) -> StepConfig:
    """The registered config of a checkpoint folder (or `reference`, `reference-full`); runs no code from it.

    Raises what opening a checkpoint raises, E-USAGE for a number type that the graph does not have, and optimum's
    ValueError for another task than text-generation and fill-mask.
    """
    register()
    checkpoint = open_checkpoint(model)
    model_type = FAMILIES[checkpoint.spec.family].model_types[0]
    constructor = TasksManager.get_exporter_config_constructor(
        BACKEND, task=task, model_type=model_type, model_name=checkpoint.name, library_name=LIBRARY
    )
    config = PretrainedConfig.from_dict(dict(checkpoint.config))
    found: StepConfig = constructor(config, int_dtype=int_dtype, float_dtype=float_dtype)
    return found
