"""The command in a model card, given to the program again, asks for the same job."""

from __future__ import annotations

import shlex

import pytest

from dlm_edge.cli.quantize import command
from dlm_edge.quant.methods import METHODS
from dlm_edge.quant.model_card import command_words, settings_beside
from dlm_edge.quant.pipeline import make_options, quantize
from dlm_edge.quant.recipes import RECIPES
from tests.tiny import make_checkpoint

OF_THE_RUN = ("model", "output", "dry_run", "resume", "restart", "as_json")
JOBS = [
    "",
    *(f"--recipe {name}" for name in RECIPES),
    *(f"--method {name}" for name in METHODS if name != "mixed"),
    "--method mixed --bits 2.5 --group-size 32 --zero float",
    "--recipe w4 --imatrix --allow-nonfinite --tune 8",
    "--recipe w2 --tune 0",
    "--recipe w2 --tune 32",
    "--recipe w2 --tune 7 --rotate --seed 3 --strict",
    "--recipe w2 --method rtn --draws 2 --quota u_shaped --confidence",
    "--recipe w3 --method nf4 --bits 4 --group-size 64",
    "--recipe w8a8 --method smoothquant --calib-tokens 4096 --skip '*.0.*' --skip '*down proj*'",
    "--method rtn --rotate --seed 5",
    "--method gptq --calibration rollout --quota uniform --confidence --calib-data texts.txt --seed 7",
    "--method awq+gptq --calibration clean --bits 3 --group-size 16 --zero integer --imatrix --strict",
]


def options_of(words: list[str]):
    """What the program makes of `dlm-edge quantize ...`."""
    assert words[:2] == ["dlm-edge", "quantize"]
    settings = dict(command.make_context("quantize", words[2:]).params)
    for key in OF_THE_RUN:
        settings.pop(key)
    size = settings.pop("group_size")
    return make_options(**settings, group_size=None if size is None else int(size))


@pytest.mark.parametrize("job", JOBS)
def test_the_command_asks_for_the_same_job(job):
    options = options_of(["dlm-edge", "quantize", "model", "-o", "OUT", *shlex.split(job)])
    assert options_of(shlex.split(shlex.join(command_words("model", options)))) == options
    assert not settings_beside(options)


def test_the_card_holds_the_command_of_its_job(tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar", n_layers=1, hidden_size=64, intermediate_size=64)
    settings = {
        "recipe": "w4",
        "method": "gptq",
        "calib_tokens": 512,
        "imatrix": True,
        "allow_nonfinite": True,
        "tune": 2,
    }
    quantize(source, tmp_path / "out", **settings)
    (line,) = [row for row in (tmp_path / "out" / "README.md").read_text().splitlines() if row.startswith("dlm-edge ")]
    assert options_of(shlex.split(line)) == make_options(**settings)


def test_what_the_command_cannot_say_is_said_beside_it(tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar", n_layers=1, hidden_size=64, intermediate_size=64)
    settings = {"method": "rtn", "options": {"search": None}}
    quantize(source, tmp_path / "out", **settings)
    assert "no option: search=None (see dlm_edge.json)" in (tmp_path / "out" / "README.md").read_text()
    whole_rows = make_options(recipe="w4", method="smoothquant", bits=8, group_size=0)
    assert settings_beside(whole_rows) == ["group_size=0"]
