"""What a model family is: how its config is read, and what its tensors are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlm_edge.families.settings import Settings
from dlm_edge.families.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`tensor_name` maps a role of the transformer (`layers.0.q.weight`) to the name in the checkpoint."""

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    read_spec: Callable[[Settings], ModelSpec]
    tensor_name: Callable[[str], str]
    to_config: Callable[[ModelSpec], dict[str, Any]]
