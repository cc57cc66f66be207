import json
import sys

import pytest

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import EnvironmentProblem, InputFileError
from dlm_edge.evaluation.tasks import SHORT_TASKS, make_samples
from dlm_edge.quant import calibration_files
from dlm_edge.quant.calibration import chat_renderer, read_tokenizer
from dlm_edge.quant.calibration_text import default_rows, read_rows, repeated
from tests.tiny import EOS_ID, make_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("text") / "sdar", "sdar"))


@pytest.fixture(scope="module")
def tokenizer(source):
    return read_tokenizer(source)


def read(path, source, tokenizer):
    return read_rows(path, tokenizer, source.spec, chat_renderer(source, tokenizer))


def text_of(row, tokenizer) -> str:
    return tokenizer.decode(list(row.ids[: row.n_content]), skip_special_tokens=True)


def test_the_default_mix_has_the_tokens_asked_for_and_depends_on_the_seed(source, tokenizer):
    first, again, other = (default_rows(tokenizer, source.spec, 8192, seed) for seed in (0, 0, 1))
    assert 8192 <= sum(len(row.ids) for row in first.rows) < 8192 + 512
    assert first.sha256 == again.sha256 != other.sha256
    assert all(len(row.ids) % 8 == 0 and len(row.ids) <= 256 for row in first.rows)
    questions = [row for row in first.rows if row.n_prompt]
    assert {text_of(row, tokenizer).split(":")[0] for row in questions} == set(SHORT_TASKS)


def test_no_sample_of_an_evaluation_is_calibrated_on(source, tokenizer):
    evaluated = {s.prompt for name in SHORT_TASKS for seed in range(10) for s in make_samples(name, 200, seed)}
    rows = default_rows(tokenizer, source.spec, 8192, 0).rows
    texts = [text_of(row, tokenizer) for row in rows if row.n_prompt]
    shared = [t for t in texts if t.split("=>")[0] + "=>" in evaluated]
    # Short bracket sequences are so few that some meet by chance; a shared seed would make all of them meet.
    assert len(shared) < len(texts) / 4


def test_running_text_is_cut_into_windows_and_filled_up_with_eos(tmp_path, source, tokenizer):
    text = " ".join(str(i) for i in range(200))
    (tmp_path / "a.txt").write_text(text)
    rows = read(tmp_path / "a.txt", source, tokenizer).rows
    n_tokens = len(tokenizer.encode(text).ids)
    assert "".join(text_of(row, tokenizer) for row in rows) == text
    assert sum(row.n_content for row in rows) == n_tokens > 512
    assert [len(row.ids) for row in rows[:-1]] == [256] * (len(rows) - 1)
    last = rows[-1]
    assert len(last.ids) % 8 == 0 and set(last.ids[last.n_content :]) <= {EOS_ID}


def test_lines_of_json_may_be_text_questions_or_conversations(tmp_path, source, tokenizer):
    talk = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]
    lines = [{"text": "some text"}, {"prompt": "why", "answer": " so"}, {"messages": talk}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    plain, question, conversation = read(tmp_path / "a.jsonl", source, tokenizer).rows
    assert (text_of(plain, tokenizer), plain.n_prompt) == ("some text", 0)
    assert (text_of(question, tokenizer), question.n_prompt) == ("why so", len(tokenizer.encode("why").ids))
    assert question.ids[question.n_content - 1] == EOS_ID
    assert (text_of(conversation, tokenizer), conversation.n_prompt) == ("who?me", len(tokenizer.encode("who?").ids))


def test_duplicates_are_dropped_and_counted(tmp_path, source, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "same"}\n' * 3 + '{"text": "other"}\n')
    data = read(tmp_path / "a.jsonl", source, tokenizer)
    assert (len(data.rows), data.duplicates) == (2, 2)


BAD = {
    "empty.txt": (b" \n", "is empty"),
    "latin.txt": (b"caf\xe9 au lait", r"not UTF-8 \(byte 3\)"),
    "a.csv": (b"text", "only .txt, .jsonl, .parquet"),
    "deep.jsonl": (b"[" * 100000, "line 1 is (nested too deeply|not JSON)"),
    "talk.jsonl": (b'{"messages": [{"role": 1}, {"role": "assistant", "content": "x"}]}', "a message without a text"),
    "a.parquet": (b"PAR1 but not really", "(cannot be read as parquet|need pyarrow)"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
    "number.jsonl": (b"17", "line 1 has nothing to calibrate on"),
    "keys.jsonl": (b'{"body": "x"}', "line 1 has nothing to calibrate on"),
    "turn.jsonl": (b'{"messages": [{"role": "user", "content": "x"}]}', "line 1 has nothing to calibrate on"),
    "nothing.jsonl": (b'{"text": ""}', "gives no usable rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_files_say_where_and_why(tmp_path, source, tokenizer, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputFileError, EnvironmentProblem), match=message) as caught:
        read(tmp_path / name, source, tokenizer)
    assert caught.value.code in ("E-CALIB", "E-DEPENDENCY") and caught.value.hint


def parquet(path, columns: dict):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet files are an option")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    return path


def test_parquet_rows_are_what_the_same_lines_of_json_are(tmp_path, source, tokenizer):
    talk = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]
    lines = [{"text": "some text"}, {"prompt": "why", "answer": " so"}, {"messages": talk}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    columns = {key: [line.get(key) for line in lines] for key in ("text", "prompt", "answer", "messages")}
    path = parquet(tmp_path / "a.parquet", columns | {"index": [1, 2, 3]})
    assert read(path, source, tokenizer).rows == read(tmp_path / "a.jsonl", source, tokenizer).rows


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"body": ["x"]}, "has only the columns body"),
        ({"text": [b"bytes"]}, "row 1 has nothing"),
        ({"text": [7]}, "row 1"),
    ],
)
def test_a_parquet_file_without_usable_columns_says_so(tmp_path, source, tokenizer, columns, message):
    path = parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(InputFileError, match=message) as caught:
        read(path, source, tokenizer)
    assert caught.value.code == "E-CALIB"


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path, source, tokenizer, monkeypatch):
    path = parquet(tmp_path / "a.parquet", {"text": ["a" * 1000] * 500})
    assert path.stat().st_size < 5000
    monkeypatch.setattr(calibration_files, "MAX_DECODED_BYTES", 100_000)
    with pytest.raises(InputFileError, match="unpacks to more than 100000 bytes"):
        read(path, source, tokenizer)


def test_without_pyarrow_the_package_is_named(tmp_path, source, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(EnvironmentProblem, match="need pyarrow") as caught:
        read(tmp_path / "a.parquet", source, tokenizer)
    assert (caught.value.code, caught.value.hint) == ("E-DEPENDENCY", "pip install pyarrow")


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path, source, tokenizer, monkeypatch):
    monkeypatch.setattr(calibration_files, "MAX_FILE_BYTES", 10)
    (tmp_path / "a.txt").write_text("more than ten bytes")
    with pytest.raises(InputFileError, match="has 19 bytes, more than 10"):
        read(tmp_path / "a.txt", source, tokenizer)


def test_a_missing_file_is_a_calibration_error(tmp_path, source, tokenizer):
    with pytest.raises(InputFileError, match="cannot read") as caught:
        read(tmp_path / "none.txt", source, tokenizer)
    assert caught.value.code == "E-CALIB"


def test_messages_need_a_chat_template(tmp_path, source, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "assistant", "content": "x"}]}')
    with pytest.raises(InputFileError, match="the model has no chat template"):
        read_rows(tmp_path / "a.jsonl", tokenizer, source.spec, None)


def test_little_text_is_repeated_with_other_masks_but_not_for_ever(tmp_path, source, tokenizer):
    (tmp_path / "a.txt").write_text("abcd" * 8)
    rows = read(tmp_path / "a.txt", source, tokenizer).rows
    n = sum(row.n_content for row in rows)
    assert len(repeated(rows, n)) == len(rows)
    assert len(repeated(rows, 3 * n - 1)) == 3 * len(rows)
    assert len(repeated(rows, 1000 * n)) == 8 * len(rows)
