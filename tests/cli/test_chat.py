"""`dlm-edge chat`: turns, commands, files, pipes, and a real terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("rich", reason="needs the cli extra")

from dlm_edge.cli import main
from dlm_edge.cli.chat_commands import NAMES, execute, is_command
from dlm_edge.cli.conversation import Conversation, Turn
from dlm_edge.cli.line_input import edited_lines, matching, read_message
from dlm_edge.errors import DlmEdgeError

SETTINGS = {"max_new_tokens": 16}


@pytest.fixture
def conversation():
    return Conversation(continued=False, settings=SETTINGS)


def turn(conversation, engine, text):
    job = conversation.ask(engine, text)
    conversation.answered(text, job.result())
    return job


def test_every_turn_sees_those_before_it(make_engine, conversation):
    engine = make_engine()
    turn(conversation, engine, "one")
    said = [{"role": t.role, "content": t.content} for t in conversation.messages]
    assert [m["role"] for m in said] == ["user", "assistant"]
    job = turn(conversation, engine, "two")
    assert job.request.ids == engine.encode([*said, {"role": "user", "content": "two"}])
    conversation.reset()
    assert turn(conversation, engine, "two").request.ids == engine.encode([{"role": "user", "content": "two"}])


def test_a_system_message_outlives_a_reset(make_engine):
    conversation = Conversation(continued=False, settings=SETTINGS, system="be brief")
    turn(conversation, make_engine(), "one")
    conversation.reset()
    assert conversation.messages == [Turn("system", "be brief")]


def test_without_a_template_the_text_is_continued(make_engine):
    engine = make_engine(template=None)
    conversation = Conversation(continued=True, settings=SETTINGS)
    first = turn(conversation, engine, "one").result().text
    job = turn(conversation, engine, "two")
    assert job.request.ids == engine.encode(f"one{first}\ntwo", raw=True)


def test_a_setting_is_typed_checked_and_taken_back(conversation):
    for line in ("temperature 0.5", "top_k 5", "stop 5", "stop_at_eos false"):
        assert execute(f"/set {line}", conversation, lambda text: None)
    assert conversation.settings == SETTINGS | {"temperature": 0.5, "top_k": 5, "stop": "5", "stop_at_eos": False}
    execute("/set stop default", conversation, lambda text: None)
    assert "stop" not in conversation.settings


def test_settings_of_a_sampler_are_set_and_taken_back():
    conversation = Conversation(continued=False, settings={"sampler_options": {"rule": "each"}})
    lines = []
    execute("/set sampler eb", conversation, lines.append)
    execute("/set gamma 0.3", conversation, lines.append)
    assert conversation.settings == {"sampler": "eb", "sampler_options": {"rule": "each", "gamma": 0.3}}
    execute("/set rule default", conversation, lines.append)
    assert conversation.settings["sampler_options"] == {"gamma": 0.3}
    execute("/set gamma default", conversation, lines.append)
    assert conversation.settings == {"sampler": "eb"}
    assert lines == ["sampler = eb", "gamma = 0.3", "rule = default", "gamma = default"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/set temprature 1", "did you mean temperature"),
        ("/set gama 1", "did you mean gamma"),
        ("/set gamma {}", "no value"),
        ("/set temperature warm", "temperature 'warm'"),
        ("/set temperature -1", "temperature is -1"),
        ("/set top_k 5", "temperature"),
        ("/set attention loza", "did you mean losa"),
        ("/sett x 1", "did you mean /set"),
        ("/foo", "see /help"),
        ("/set temperature", "write /set NAME VALUE"),
        ("/reset all", "write /reset"),
        ("/load /no/such/file", "E-FILE"),
    ],
)
def test_wrong_commands_name_the_way_out_and_change_nothing(conversation, line, expected):
    with pytest.raises(DlmEdgeError) as error:
        execute(line, conversation, lambda text: None)
    assert expected in str(error.value)
    assert conversation.settings == SETTINGS


def test_what_is_a_command():
    assert is_command("/help") and is_command("/set x 1")
    assert not any(is_command(line) for line in ("", "hello", "/etc/hosts is a file", "// a comment", " /help"))


def test_help_lists_every_command_and_settings_every_setting(conversation):
    lines = []
    assert execute("/help", conversation, lines.append) and len(lines) == len(NAMES)
    execute("/settings", conversation, lines.append)
    assert "max_new_tokens = 16" in lines and "temperature" in lines[-1]
    assert not execute("/quit", conversation, lines.append)


def test_a_saved_chat_goes_on_where_it_was(make_engine, conversation, tmp_path):
    engine, file = make_engine(), tmp_path / "chat.json"
    execute("/set stop never", conversation, lambda text: None)
    turn(conversation, engine, "one")
    execute(f"/save {file}", conversation, lambda text: None)
    execute(f"/save {file}", conversation, lambda text: None)  # of the same kind: replaced
    other = Conversation(continued=False, settings={})
    execute(f"/load {file}", other, lambda text: None)
    assert other.messages == conversation.messages and other.settings == conversation.settings
    assert other.ask(engine, "two").result().text == conversation.ask(engine, "two").result().text
    with pytest.raises(DlmEdgeError, match="without a|with a chat template"):
        Conversation(continued=True, settings={}).load(file)


def test_other_files_are_neither_replaced_nor_loaded(conversation, tmp_path):
    file = tmp_path / "letter.txt"
    file.write_text("mine")
    with pytest.raises(DlmEdgeError, match="no saved chat"):
        conversation.save(file)
    assert file.read_text() == "mine"
    for content in (
        "mine",
        "{}",
        '{"schema": 9, "kind": "dlm-edge chat", "continued": false, "messages": [], "settings": {}}',
    ):
        file.write_text(content)
        with pytest.raises(DlmEdgeError) as error:
            conversation.load(file)
        assert error.value.code == "E-JSON"


def test_several_lines_between_quotes():
    lines = iter(['"""one', "two", 'three"""', "four", '"""open', "end"])

    def read(prompt):
        for line in lines:
            return line
        raise EOFError

    assert [read_message(read, "> ") for _ in range(4)] == ["one\ntwo\nthree", "four", "open\nend", None]


def test_words_are_completed():
    assert matching(NAMES, "/re") == ["/reset"] and matching(NAMES, "x") == []


def test_typed_lines_are_kept_privately(tmp_path):
    readline = pytest.importorskip("readline", reason="this Python has no readline")
    file = tmp_path / "state" / "chat_history"
    readline.clear_history()
    with edited_lines(file, NAMES):
        readline.add_history("typed before")
    readline.clear_history()
    with edited_lines(file, NAMES):
        assert readline.get_history_item(1) == "typed before"
    readline.clear_history()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_history_that_cannot_be_written_is_said_and_stops_nothing(tmp_path, capsys):
    pytest.importorskip("readline", reason="this Python has no readline")
    (tmp_path / "file").write_text("")
    with edited_lines(tmp_path / "file" / "history", NAMES):
        pass
    assert "input history" in capsys.readouterr().err


@pytest.fixture
def piped(bundle, monkeypatch, capsys):
    def run(text, *arguments, code=0):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert main(["chat", str(bundle), "--max-new-tokens", "8", *arguments]) == code
        return capsys.readouterr()

    return run


def test_a_pipe_gets_the_answers_and_nothing_else(piped):
    chat = json.loads(piped("hello\n\nagain\n", "--json").out)
    answers = [m["content"] for m in chat["messages"] if m["role"] == "assistant"]
    assert len(answers) == len(chat["results"]) == 2 and chat["results"][1]["prompt_tokens"] > 5
    output = piped("hello\n\nagain\n")
    assert output.out == "".join(answer + "\n" for answer in answers) and output.err == ""
    assert "\x1b[" not in output.out


def test_commands_in_a_pipe(piped):
    output = piped("/set max_new_tokens 3\nhello\n/quit\nnever asked\n", "--json")
    assert [r["new_tokens"] for r in json.loads(output.out)["results"]] == [3]
    assert "max_new_tokens = 3" in output.err
    assert "did you mean /quit" in piped("/quti\n", code=2).err


def test_raw_is_said(piped):
    output = piped("hello\n", "--raw", "--json")
    assert json.loads(output.out)["continued"] and "without roles" in output.err
    assert "--system needs a chat template" in piped("", "--raw", "--system", "x", code=2).err


def test_wrong_settings_are_refused_before_the_bundle_is_opened(capsys):
    assert main(["chat", "/no/such/bundle", "--sampler", "treshold"]) == 2
    assert "did you mean threshold" in capsys.readouterr().err


class Typist:
    """`dlm-edge chat` on a terminal of its own."""

    def __init__(self, *arguments, **environment):
        import pty

        self.terminal, inside = pty.openpty()
        code = "import sys; from dlm_edge.cli import main; sys.exit(main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", *arguments],
            stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(inside)
        self.seen = ""

    def wait_for(self, text, *, limit=60.0):
        """Read on until `text` comes; what came before it is returned and forgotten."""
        import select

        end = time.monotonic() + limit
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                self.seen += os.read(self.terminal, 65536).decode("utf-8", "replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.terminal, text.encode())


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_on_a_terminal(bundle, tmp_path):
    typist = Typist(
        str(bundle), "--max-new-tokens", "400", "--no-cache", "--threads", "1", XDG_STATE_HOME=str(tmp_path)
    )
    typist.wait_for("> ")
    typist.type("hello\n")
    typist.wait_for("░")  # masks are drawn
    typist.type("\x03")  # once: the answer stops and stays
    typist.wait_for("cancelled")  # a narrow terminal breaks the line before it, or not
    typist.wait_for("> ")
    typist.type("/set max_new_tokens 4\n")
    typist.wait_for("max_new_tokens = 4")
    typist.type("again\n")
    typist.wait_for("length")
    typist.wait_for("> ")
    typist.type("\x04")
    assert typist.process.wait(30) == 0
    assert "again" in (tmp_path / "dlm-edge" / "chat_history").read_text()


def test_answers_before_a_bad_line_are_not_lost(piped):
    output = piped("hello\n\udcff\nnever asked\n", "--json", code=3)
    chat = json.loads(output.out)
    assert len(chat["results"]) == 1 and chat["error"]["code"] == "E-UTF8"
    assert piped("hello\n\udcff\n", code=3).err.startswith("error E-UTF8")
