"""What recipes and methods take and refuse, and that the command line offers the same."""

import pytest

from dlm_edge.cli import quantize as command
from dlm_edge.errors import UsageProblem
from dlm_edge.quant.grid import GROUP_SIZES, ZERO_KINDS
from dlm_edge.quant.methods import METHODS
from dlm_edge.quant.pipeline import make_options
from dlm_edge.quant.recipes import DEFAULT, PER_CHANNEL, RECIPES, choose_recipe

FREE = [name for name, method in METHODS.items() if not method.form and not method.allocates]
FIXED = [name for name, method in METHODS.items() if method.form]


def refused(name: str | None = None, **changes) -> UsageProblem:
    with pytest.raises(UsageProblem) as caught:
        choose_recipe(name, **changes)
    return caught.value


def test_the_command_line_offers_what_the_tables_hold():
    assert set(METHODS) == set(command.METHODS) and len(METHODS) == len(command.METHODS)
    assert set(RECIPES) == set(command.RECIPES) and len(RECIPES) == len(command.RECIPES)
    choices = {p.name: set(p.type.choices) for p in command.command.params if hasattr(p.type, "choices")}
    assert choices["method"] == set(METHODS) and choices["recipe"] == set(RECIPES)
    assert choices["group_size"] == {str(size) for size in GROUP_SIZES} and choices["zero"] == set(ZERO_KINDS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_the_table_says(name):
    recipe = choose_recipe(name)
    assert recipe == RECIPES[name]
    config = recipe.config(256)
    assert (config.bits, config.zero) == (recipe.bits, recipe.zero)
    assert config.group_size == (recipe.group_size or 256)
    assert make_options(recipe=name).recipe == recipe


def test_without_a_name_it_is_the_default():
    assert choose_recipe(None) == RECIPES[DEFAULT]
    assert choose_recipe(None, bits=3) == choose_recipe(DEFAULT, bits=3)


@pytest.mark.parametrize("zero", ZERO_KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("method", FREE)
def test_a_method_takes_every_grid_that_can_be_run(method, bits, zero):
    settings = {"method": method, "bits": bits, "group_size": 32, "zero": zero}
    if bits == 8 and zero == "float":
        assert refused(**settings).code == "E-QUANT"
    else:
        config = choose_recipe(None, **settings).config(64)
        assert (config.bits, config.group_size, config.zero) == (bits, 32, zero)


@pytest.mark.parametrize("method", FREE)
@pytest.mark.parametrize("changes", [{"bits": 5}, {"bits": 2.5}, {"group_size": 48}, {"group_size": 0}, {"zero": "x"}])
def test_a_method_refuses_any_other_grid(method, changes):
    assert refused(method=method, **changes).code == "E-QUANT"


@pytest.mark.parametrize("method", FIXED)
def test_a_method_with_a_form_of_its_own_starts_from_it_and_takes_no_other(method):
    form = METHODS[method].form
    recipe = choose_recipe(None, method=method)
    assert {key: getattr(recipe, key) for key in form} == form
    assert choose_recipe(None, method=method, **form) == recipe
    for changes in ({"bits": 3}, {"group_size": 32}, {"zero": "integer"}):
        problem = refused(method=method, **changes)
        (key,) = changes
        assert problem.code == "E-QUANT" and key.replace("_", "-") in problem.hint
    config = recipe.config(128)
    assert config.group_size == (recipe.group_size or 128)


def test_a_recipe_whose_method_has_another_form_is_refused():
    problem = refused("w4", method="w8a8")
    assert problem.code == "E-QUANT" and "w8a8" in problem.message
    assert choose_recipe("w8a8").group_size == PER_CHANNEL
    assert refused("w8a8", method="gptq").code == "E-QUANT"  # one group per channel is no group of a grid


def test_mixed_bits_have_a_mean_of_their_own():
    assert choose_recipe(None, method="mixed", bits=2.5).bits == 2.5
    for bits in (2, 8, 1.5, 9):
        problem = refused(method="mixed", bits=bits)
        assert problem.code == "E-QUANT" and "between 2 and 8" in problem.message
    assert "mixed" in refused(method="gptq", bits=2.5).hint


@pytest.mark.parametrize("zero", ZERO_KINDS)
def test_mixed_bits_are_runnable_at_every_width(zero):
    """8 bits have no float zero: such a layer has none at all."""
    recipe = choose_recipe(None, method="mixed", bits=4, group_size=32, zero=zero)
    zeros = {bits: recipe.config(64, bits).zero for bits in (2, 3, 4, 8)}
    assert zeros == {2: zero, 3: zero, 4: zero, 8: "symmetric" if zero == "float" else zero}


@pytest.mark.parametrize(("name", "nearest"), [("w4-qualty", "w4-quality"), ("w8a9", "w8a8")])
def test_an_unknown_recipe_names_the_nearest(name, nearest):
    problem = refused(name)
    assert problem.code == "E-USAGE" and problem.hint == f"did you mean {nearest}?"


@pytest.mark.parametrize(
    ("name", "nearest"), [("gptk", "gptq"), ("smooth-quant", "smoothquant"), ("awq+gtpq", "awq+gptq")]
)
def test_an_unknown_method_names_the_nearest(name, nearest):
    problem = refused(method=name)
    assert problem.code == "E-USAGE" and problem.hint == f"did you mean {nearest}?"


def test_what_resembles_nothing_is_answered_with_all_there_is():
    assert all(name in refused("xyzzy!").hint for name in RECIPES)
    assert all(name in refused(method="xyzzy!").hint for name in METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_an_option_that_the_method_does_not_have_is_refused(method):
    problem = refused(method=method, options={"no_such_option": 1})
    assert problem.code == "E-USAGE" and "no_such_option" in problem.message and method in problem.message
    assert refused(method=method, options={"bits": 4}).code == "E-USAGE"  # has a setting of its own


def test_an_option_reaches_the_method():
    assert choose_recipe(None, method="gptq", options={"damping": 0.02}).config(64).damping == 0.02
    assert refused(method="gptaq", options={"alpha": 2}).code == "E-QUANT"


@pytest.mark.parametrize("method", METHODS)
def test_only_what_has_scales_to_tune_is_tuned(method):
    bits = {"bits": 2.5} if METHODS[method].allocates else {}
    if METHODS[method].tunable:
        assert choose_recipe(None, method=method, **bits, tuning={"steps": 2}).tuning == {"steps": 2}
    else:
        assert refused(method=method, tuning={"steps": 2}).code == "E-QUANT"


def test_tuning_can_be_left_out_of_a_recipe_and_added_to_one():
    assert make_options(recipe="w2").recipe.tuning == {"steps": 32}
    assert make_options(recipe="w2", tune=0).recipe.tuning is None
    tuning = make_options(recipe="w4", tune=5).recipe.tuning
    assert tuning is not None and tuning["steps"] == 5


@pytest.mark.parametrize("method", METHODS)
def test_calibration_data_for_a_method_without_states_are_refused(method):
    bits = {"bits": 2.5} if METHODS[method].allocates else {}
    if METHODS[method].needs_states:
        assert make_options(method=method, **bits, imatrix=True).needs_states
        return
    for further in ({"imatrix": True}, {"calib_data": "texts.txt"}):
        with pytest.raises(UsageProblem) as caught:
            make_options(method=method, **further)
        assert caught.value.code == "E-USAGE"
