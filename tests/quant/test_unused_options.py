"""An option of the calibration that would decide nothing is refused, by name; what nobody gave stands in nobody's way."""

import pytest

from dlm_edge.cli import main
from dlm_edge.quant import quantize
from dlm_edge.quant.methods import METHODS
from dlm_edge.quant.pipeline import make_options
from dlm_edge.quant.recipes import RECIPES, Recipe
from dlm_edge.quant.state_batch import MODES
from dlm_edge.quantized import RECORD_NAME
from tests.tiny import make_checkpoint

WITHOUT_STATES = [name for name, method in METHODS.items() if not method.needs_states]
OF_STATES = {
    "--calibration": ["forward"],  # the default, but asked for
    "--draws": ["1"],
    "--quota": ["uniform"],
    "--confidence": [],
    "--calib-tokens": ["1024"],
    "--calib-data": ["texts.txt"],
    "--imatrix": [],
    "--seed": ["0"],
}
USED = {"--draws": {"forward"}, "--quota": {"forward", "rollout"}, "--confidence": {"forward", "rollout"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unused") / "source"
    return str(make_checkpoint(folder, "sdar", n_layers=1, hidden_size=64, intermediate_size=64))


@pytest.fixture
def command(capsys, source, tmp_path):
    """`dlm-edge quantize` with these words: its exit code and what it said."""

    def run(*words: str) -> tuple[int, str]:
        code = main(["quantize", source, "-o", str(tmp_path / "out"), *words])
        return code, capsys.readouterr().err

    return run


def test_the_methods_without_states_are_these():
    assert WITHOUT_STATES == ["rtn", "hqq", "nf4", "fp4"]


@pytest.mark.parametrize("option", OF_STATES)
@pytest.mark.parametrize("method", WITHOUT_STATES)
def test_a_method_without_states_refuses_every_option_of_them(command, tmp_path, method, option):
    code, said = command("--method", method, option, *OF_STATES[option])
    assert code == 2 and "E-USAGE" in said
    assert f"the method {method} uses no calibration data: {option} would change nothing" in said
    assert f"leave {option} out, or choose --method" in said
    assert not list(tmp_path.iterdir())


def test_all_that_was_given_in_vain_is_named_at_once(command):
    _, said = command("--method", "rtn", "--draws", "2", "--quota", "u_shaped")
    assert "--draws and --quota would change nothing" in said


def test_a_dry_run_refuses_the_same(command):
    code, said = command("--method", "rtn", "--draws", "2", "--dry-run")
    assert code == 2 and "--draws" in said


@pytest.mark.parametrize("method", WITHOUT_STATES)
def test_without_them_the_method_runs(source, tmp_path, method):
    if method in ("nf4", "fp4"):
        pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes", exc_type=ImportError)
    quantize(source, tmp_path / "out", method=method, calibration=None, draws=None, quota=None, confidence=False)
    assert (tmp_path / "out" / RECORD_NAME).is_file()


@pytest.mark.parametrize("option", USED)
@pytest.mark.parametrize("mode", MODES)
def test_a_kind_of_states_takes_the_options_that_it_uses(command, tmp_path, mode, option):
    code, said = command("--method", "gptq", "--calibration", mode, option, *OF_STATES[option], "--dry-run")
    if mode in USED[option]:
        assert code == 0, said
    else:
        assert code == 2 and "E-USAGE" in said
        assert f"{option} would change nothing with --calibration {mode}" in said
        assert all(used in said for used in USED[option])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", ["--calib-tokens", "--imatrix", "--seed"])
def test_every_kind_of_states_takes_what_all_use(command, mode, option):
    code, said = command("--method", "gptq", "--calibration", mode, option, *OF_STATES[option], "--dry-run")
    assert code == 0, said


def test_rounding_with_tuning_does_use_states(command):
    code, said = command("--method", "rtn", "--tune", "2", "--draws", "2", "--calib-tokens", "1024", "--dry-run")
    assert code == 0, said


@pytest.mark.parametrize("method", ["rtn", "hqq"])
def test_a_rotation_does_draw_from_the_seed(source, tmp_path, method):
    for seed in (0, 1):
        quantize(source, tmp_path / f"{seed}", method=method, rotate=True, seed=seed)
    first, other = ((tmp_path / seed / "layer-0000.safetensors").read_bytes() for seed in "01")
    assert first != other


def test_what_a_recipe_brings_was_not_asked_for(monkeypatch):
    brought = Recipe(method="gptq", calibration="forward", states={"draws": 2, "quota": "u_shaped"})
    monkeypatch.setitem(RECIPES, "brings", brought)
    assert make_options(recipe="brings").recipe == brought
    assert make_options(recipe="brings", method="rtn").recipe.states == brought.states
    assert make_options(recipe="brings", calibration="clean").recipe.states == brought.states


def test_the_card_s_command_of_a_method_without_states_is_one_that_is_taken(source, tmp_path):
    quantize(source, tmp_path / "out", method="rtn")
    (line,) = [row for row in (tmp_path / "out" / "README.md").read_text().splitlines() if row.startswith("dlm-edge ")]
    words = line.split()
    words[2:5] = [source, "-o", str(tmp_path / "again")]
    assert main(words[1:]) == 0
    weights = [(tmp_path / name / "layer-0000.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]
