"""`dlm-edge tune`: its table and its JSON."""

from __future__ import annotations

import json
import shutil

from dlm_edge.cli import main

FAST = ["--samples", "1", "--repeats", "1", "--threads", "1", "--sampler", "localleap", "--sampler", "adablock"]


def test_json_has_the_promised_keys_and_stdout_nothing_else(bundle, capsys):
    assert main(["tune", str(bundle), *FAST, "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["chosen"]["sampler"] in ("static", "localleap") and not found["written"]
    assert {row["verdict"] for row in found["rows"]} <= {"chosen", "holds", "special", "dropped", "refused"}
    assert "round 1 of 1" in err and "left out: adablock" in err


def test_the_table_says_what_was_done_and_inspect_shows_it(bundle, tmp_path, capsys):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    assert main(["tune", str(folder), *FAST, "-q"]) == 0
    out, err = capsys.readouterr()
    assert "agreement" in out and "built-in tasks" in out and "left out: adablock" in out and not err
    assert f"default of {folder}" in out and (folder / "tune.svg").is_file()
    assert main(["check", str(folder)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "defaults      " in text and "tuned         " in text
    assert main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "those of the runtime" in text and "tuned" not in text
