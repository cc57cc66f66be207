import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from dlm_edge import files
from dlm_edge.errors import DlmEdgeError
from dlm_edge.journal import JOURNAL, read_journal
from dlm_edge.quantized import RECORD_NAME
from dlm_edge.work_folder import WorkFolder
from tests.core.faulty_files import FaultyCalls, Killed

KEYS = ("one", "two", "three")
OLD = {RECORD_NAME: "old output"}


def run_job(out: Path, *, options: int = 1, resume: bool = False, restart: bool = False) -> list[str]:
    """A job of three steps; returns the steps that this run did."""
    done = []
    with WorkFolder.open(out, {"options": options}, resume=resume, restart=restart) as work:
        for key in KEYS:
            if not work.is_done(key):
                files.write_file(work.path / key, key * 100)
                work.record(key, names=[key], note=len(key))
                done.append(key)
        files.write_file(work.path / RECORD_NAME, "new output")
        work.finish()
    return done


def content(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


NEW = {key: key * 100 for key in KEYS} | {RECORD_NAME: "new output"}


def put_old(out: Path) -> None:
    out.mkdir()
    for name, text in OLD.items():
        (out / name).write_text(text)


def refusal(out: Path, **settings) -> str:
    with pytest.raises(DlmEdgeError) as caught:
        run_job(out, **settings)
    return caught.value.code


def test_a_finished_job_leaves_only_its_output(tmp_path):
    assert run_job(tmp_path / "out") == list(KEYS)
    assert content(tmp_path / "out") == NEW
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_that_exists_is_refused_or_replaced(tmp_path):
    put_old(tmp_path / "out")
    assert refusal(tmp_path / "out") == "E-EXISTS"
    assert content(tmp_path / "out") == OLD
    run_job(tmp_path / "out", restart=True)
    assert content(tmp_path / "out") == NEW
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_a_folder_of_somebody_else_is_never_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    for settings in ({}, {"restart": True}, {"resume": True}):
        assert refusal(tmp_path / "out", **settings) == "E-EXISTS"
    assert content(tmp_path / name) == {"thesis.txt": "years of work"}


def test_neither_is_a_file_of_theirs_called_like_our_journal(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_text('{"day": 1}\n')
    assert refusal(tmp_path / "out") == "E-EXISTS"
    assert (tmp_path / "out" / JOURNAL).is_file()


@pytest.mark.parametrize("out", [".", ".."])
def test_an_output_without_a_name_is_refused(out):
    assert refusal(Path(out)) == "E-USAGE"


def stop_after_two(out: Path, **settings) -> None:
    with pytest.raises(ZeroDivisionError), WorkFolder.open(out, {"options": 1}, resume=False, restart=False) as work:
        for key in KEYS[:2]:
            files.write_file(work.path / key, key * 100)
            work.record(key, names=[key])
        raise ZeroDivisionError


def test_an_unfinished_run_is_resumed_only_on_request_and_with_the_same_options(tmp_path):
    stop_after_two(tmp_path / "out")
    assert refusal(tmp_path / "out") == "E-RESUME"
    with pytest.raises(DlmEdgeError, match="options: 1 then, 2 now"):
        run_job(tmp_path / "out", options=2, resume=True)
    assert run_job(tmp_path / "out", resume=True) == ["three"]
    assert content(tmp_path / "out") == NEW


def test_restart_discards_an_unfinished_run(tmp_path):
    stop_after_two(tmp_path / "out")
    assert run_job(tmp_path / "out", options=2, restart=True) == list(KEYS)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_step_is_done_again(tmp_path, damage):
    stop_after_two(tmp_path / "out")
    path = tmp_path / "out.partial" / "one"
    if damage == "delete":
        path.unlink()
    else:
        path.write_text("one" * 99 if damage == "truncate" else "onf" + "one" * 99)
    assert run_job(tmp_path / "out", resume=True) == ["one", "three"]
    assert content(tmp_path / "out") == NEW


@pytest.mark.parametrize("cut", [1, 30])
def test_a_torn_journal_line_costs_one_step(tmp_path, cut):
    stop_after_two(tmp_path / "out")
    journal = tmp_path / "out.partial" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert run_job(tmp_path / "out", resume=True) == ["two", "three"]
    assert content(tmp_path / "out") == NEW


@pytest.mark.parametrize("line", ["7", "{}", '{"kez": "two", "files": []}', "garbage"])
def test_a_damaged_journal_line_is_dropped_with_all_after_it(tmp_path, line):
    stop_after_two(tmp_path / "out")
    journal = tmp_path / "out.partial" / JOURNAL
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:2], line, lines[2]]) + "\n")
    with (
        pytest.raises(ZeroDivisionError),
        WorkFolder.open(tmp_path / "out", {"options": 1}, resume=True, restart=False) as work,
    ):
        assert work.is_done("one") and not work.is_done("two")
        files.write_file(work.path / "two", "two" * 100)
        work.record("two", names=["two"])
        raise ZeroDivisionError
    assert run_job(tmp_path / "out", resume=True) == ["three"]  # what was done after the damage counts


def test_a_cheap_job_discards_only_its_own_unfinished_run(tmp_path):
    stop_after_two(tmp_path / "out")
    with (
        pytest.raises(DlmEdgeError) as caught,
        WorkFolder.open(tmp_path / "out", {"job": "export"}, resume=False, restart=False, discard_unfinished=True),
    ):
        pass
    assert caught.value.code == "E-RESUME"
    assert run_job(tmp_path / "out", resume=True) == ["three"]


def test_a_manifest_of_somebody_else_is_no_output_of_ours(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "an extension", "files": []}')
    assert refusal(tmp_path / "out", restart=True) == "E-EXISTS"


def test_an_output_behind_a_link_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "disk").mkdir()
    put_old(tmp_path / "disk" / "out")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    run_job(tmp_path / "link", restart=True)
    assert content(tmp_path / "link") == NEW and (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["out"]


def test_a_journal_whose_first_line_is_lost_needs_restart(tmp_path):
    stop_after_two(tmp_path / "out")
    (tmp_path / "out.partial" / JOURNAL).write_text("garbage")
    assert refusal(tmp_path / "out", resume=True) == "E-EXISTS"
    assert run_job(tmp_path / "out", restart=True) == list(KEYS)


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("kill", [False, True], ids=["fail", "kill"])
def test_whichever_call_fails_the_job_can_be_finished(tmp_path, monkeypatch, kill, replaced):
    """Fail or kill at call 1, 2, 3, ... until a run sees no fault; after each, resume and compare."""
    for k in range(1, 200):
        out = tmp_path / str(k) / "out"
        out.parent.mkdir()
        if replaced:
            put_old(out)
        monkeypatch.setattr(files, "calls", FaultyCalls(k, kill=kill))
        try:
            run_job(out, restart=replaced)
        except (Killed, DlmEdgeError):
            faulty = True
        else:
            faulty = False
        monkeypatch.setattr(files, "calls", files.FileCalls())
        if out.exists():  # old or new, never a mixture
            assert {n: t for n, t in content(out).items() if n != JOURNAL} in (OLD, NEW)
        if faulty:
            finish(out, replaced)
        assert content(out) == NEW
        assert os.listdir(out.parent) == ["out"]
        if not faulty:
            break
    assert k > 25  # the loop did visit the calls of all three steps


def finish(out: Path, replaced: bool) -> None:
    """What a user would do: the same command with --resume; a job that had not begun is begun again."""
    try:
        run_job(out, resume=True)
    except DlmEdgeError as problem:
        assert problem.code == "E-EXISTS"
        if content(out) == OLD:
            assert replaced and not read_journal(out.with_name("out.partial") / JOURNAL)
            run_job(out, restart=True)


def test_finished_steps_survive_a_kill_anywhere_in_finish(tmp_path, monkeypatch):
    for k in range(1, 10):
        out = tmp_path / str(k) / "out"
        out.parent.mkdir()
        put_old(out)
        with WorkFolder.open(out, {"options": 1}, resume=False, restart=True) as work:
            for key in KEYS:
                files.write_file(work.path / key, key * 100)
                work.record(key, names=[key])
            files.write_file(work.path / RECORD_NAME, "new output")
            monkeypatch.setattr(files, "calls", FaultyCalls(k, kill=True))
            try:
                work.finish()
            except Killed:
                killed = True
            else:
                killed = False
        monkeypatch.setattr(files, "calls", files.FileCalls())
        if not killed:
            break
        try:
            assert run_job(out, resume=True) == []
        except DlmEdgeError as problem:
            assert problem.code == "E-EXISTS"
        assert content(out) == NEW
    assert k == 6  # two renames, a sync, the journal, the old output; then a run without a kill


def hold_lock(out: Path, ready) -> None:
    with WorkFolder.open(out, {}, resume=False, restart=False):
        ready.set()
        signal.pause()


@pytest.mark.skipif(not hasattr(signal, "pause"), reason="needs POSIX signals")
def test_two_runs_exclude_each_other_and_a_killed_one_lets_go(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path / "out", ready))
    process.start()
    assert ready.wait(30)
    assert refusal(tmp_path / "out") == "E-BUSY"
    process.kill()
    process.join(30)
    assert run_job(tmp_path / "out", restart=True) == list(KEYS)


def test_the_journal_is_lines_of_json(tmp_path):
    stop_after_two(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out.partial" / JOURNAL).read_text().splitlines()]
    assert [line.get("key") for line in lines] == [None, "one", "two"]
    assert lines[0]["fingerprint"] == {"options": 1}
