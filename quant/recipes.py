"""Recipes: every setting that decides what the weights become, under a name. Written in full into the record."""

from __future__ import annotations

import difflib
from typing import Any

import msgspec

from dlm_edge.errors import UsageProblem
from dlm_edge.quant.grid import check_grid
from dlm_edge.quant.methods import find_method
from dlm_edge.quant.mixed import zero_at
from dlm_edge.quant.states import StateConfig
from dlm_edge.quant.tuning import TuningConfig
from dlm_edge.quantized import ZeroKind

PER_CHANNEL = 0  # group size: one scale per output channel


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`bits` of every layer, or their mean where the method allocates them. `states`: further fields of StateConfig;
    `options`: of the method's config; `tuning`: of TuningConfig, None for no tuning after the rounding."""

    method: str = "decoupleq"
    bits: float = 4
    group_size: int = 64
    zero: ZeroKind = "symmetric"
    calibration: str = "forward"
    states: dict[str, Any] = {}
    rotate: bool = False
    options: dict[str, Any] = {}
    tuning: dict[str, Any] | None = None

    def config(self, in_features: int, bits: float | None = None) -> Any:
        """The method's config for one weight. Raises E-QUANT or E-USAGE."""
        bits = self.bits if bits is None else bits
        method, group_size = find_method(self.method), self.group_size or in_features
        zero = zero_at(int(bits), self.zero) if method.allocates else self.zero
        try:
            return method.config(bits=int(bits), group_size=group_size, zero=zero, **self.options)
        except TypeError as error:
            raise UsageProblem("E-USAGE", f"the method {self.method} takes no such option: {error}") from error


# Chosen by docs/quality.md: float zeros cost half a bit per weight in groups of 32, and pay for it at 2 bits only.
RECIPES: dict[str, Recipe] = {
    "w4": Recipe(method="decoupleq"),
    "w4-quality": Recipe(method="decoupleq", group_size=32, zero="integer"),
    "w3": Recipe(method="decoupleq", bits=3, group_size=32),
    "w2": Recipe(method="decoupleq", bits=2, group_size=32, zero="float", tuning={"steps": 32}),
    "w8a8": Recipe(method="w8a8", bits=8, group_size=PER_CHANNEL),
}
DEFAULT = "w4"


def choose_recipe(name: str | None, **changes: Any) -> Recipe:
    """The recipe `name`, with those `changes` that are not None. A method without a recipe starts from its own form.

    Raises E-USAGE or E-QUANT for what does not fit together.
    """
    if name is not None and name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(RECIPES)}"
        raise UsageProblem("E-USAGE", f"recipe {name!r} is not known", hint)
    given = {key: value for key, value in changes.items() if value is not None}
    recipe = msgspec.structs.replace(starting_point(name, given.get("method")), **given)
    check(recipe)
    return recipe


def starting_point(name: str | None, method: str | None) -> Recipe:
    """The settings of a job for which nothing else was said. Raises E-USAGE for an unknown method."""
    form = {} if method is None else find_method(method).form
    if name is None and method is not None:
        return Recipe(method=method, **form)
    start = RECIPES[name or DEFAULT]
    return start if method is None else msgspec.structs.replace(start, method=method)


def state_config(recipe: Recipe) -> StateConfig:
    """How calibration states are made. Raises E-USAGE."""
    return StateConfig(mode=recipe.calibration, **recipe.states)


def check(recipe: Recipe) -> None:
    """Raise E-QUANT or E-USAGE for a recipe that no layer could follow."""
    method = find_method(recipe.method)
    for key, needed in method.form.items():
        if getattr(recipe, key) != needed:
            shown = "one group per output channel" if key == "group_size" and not needed else f"{key} {needed}"
            message = f"the method {recipe.method} works with {shown}, not {getattr(recipe, key)}"
            raise UsageProblem("E-QUANT", message, f"leave --{key.replace('_', '-')} out")
    if method.allocates:
        if not 2 < recipe.bits < 8:
            raise UsageProblem("E-QUANT", f"mixed bits need a mean between 2 and 8, got {recipe.bits}", "as in 2.5")
        check_grid(4, recipe.group_size, recipe.zero)
    elif "group_size" not in method.form:
        if not float(recipe.bits).is_integer():  # NaN and infinity are none either
            raise UsageProblem("E-QUANT", f"{recipe.bits} bits need the method mixed", "add --method mixed")
        check_grid(int(recipe.bits), recipe.group_size, recipe.zero)
    recipe.config(256 if recipe.group_size == PER_CHANNEL else recipe.group_size, 4 if method.allocates else None)
    state_config(recipe)
    if recipe.tuning is not None:
        if not method.tunable:
            raise UsageProblem("E-QUANT", f"the method {recipe.method} leaves nothing to tune", "leave --tune out")
        TuningConfig(**recipe.tuning)
