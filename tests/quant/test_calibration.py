import json
import types

import pytest
import torch

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import ResourceError, UsageProblem
from dlm_edge.export.pipeline import copy_texts
from dlm_edge.quant import calibration
from dlm_edge.quant.calibration import DEFAULTS, chat_renderer, load_calibration, read_tokenizer
from dlm_edge.quant.coverage import effective_rank, measure_coverage
from dlm_edge.quant.states import StateConfig
from tests.tiny import FAMILY_NAMES, make_checkpoint


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    return {f: open_checkpoint(make_checkpoint(folder / f, f, n_layers=2)) for f in FAMILY_NAMES}


def options(mode="forward", data=None):
    return types.SimpleNamespace(calibration=mode, calib_data=data, seed=0)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("mode", DEFAULTS)
def test_the_record_says_what_the_statistics_were_taken_on(sources, family, mode):
    loaded = load_calibration(sources[family], options(mode), 2048)
    record = json.loads(json.dumps(loaded.description()))
    weighted = sum(int((b.weights > 0).sum()) for b in loaded.batches)
    assert record["mode"] == mode and record["draws"] >= 1 and record["quota"] == "uniform"
    assert record["tokens"] == weighted == loaded.tokens >= 2048 * 0.9
    assert 0 < record["effective_tokens"] <= weighted
    assert record["tokens_per_input"] == pytest.approx(weighted / 128, abs=0.01)  # 128: the second FFN linear
    ids = {i for b in loaded.batches for i in b.ids[b.weights > 0].tolist()}
    ids.discard(sources[family].spec.conventions.mask_id)
    assert record["distinct_ids"] == len(ids)
    assert len(record["sha256"]) == 64 and loaded.data.sha256 in loaded.fingerprint()


def test_more_draws_of_fewer_texts_give_as_many_noisy_tokens(sources, tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(str(i) for i in range(4000)))
    given = options(data=tmp_path / "a.txt")
    one, four = (load_calibration(sources["sdar"], given, 4096, StateConfig(draws=d)) for d in (1, 4))
    noisy = [sum(int((b.ids != b.originals).sum()) for b in c.batches) for c in (one, four)]
    assert noisy[1] == pytest.approx(noisy[0], rel=0.1)
    for loaded, wanted in ((one, 4096), (four, 1024)):
        assert wanted <= sum(row.n_content for row in loaded.data.rows) < wanted + 256
    assert one.data.left_out > 10
    assert one.fingerprint() != four.fingerprint()


def test_too_little_data_is_said_clearly(sources, tmp_path):
    (tmp_path / "few.txt").write_text("a few words")
    few = load_calibration(sources["llada"], options(data=tmp_path / "few.txt"), 2048)
    repeated, little = few.warnings
    count = few.data.rows[0].n_content
    assert repeated == (
        f"few.txt has {count} tokens: used 8 times, each time with other masks, which is still less than the 2048 asked for"
    )
    assert little.startswith(f"{few.tokens} weighted calibration tokens for 128 inputs of the widest layer, so its")
    assert few.description()["warnings"] == few.warnings

    (tmp_path / "some.txt").write_text(" ".join(str(i) for i in range(60)))
    some = load_calibration(sources["llada"], options(data=tmp_path / "some.txt"), 160)
    assert 128 <= some.tokens < 256
    assert any("which is little: give at least 256" in w for w in some.warnings)
    assert load_calibration(sources["llada"], options(), 2048).warnings == []


@pytest.mark.parametrize("config", [StateConfig(mode="rollout"), StateConfig(confidence=True)], ids=["rollout", "conf"])
def test_states_that_need_the_whole_model_refuse_a_machine_it_does_not_fit(sources, monkeypatch, config):
    needed = calibration.model_bytes(sources["sdar"])
    monkeypatch.setattr(calibration, "available_bytes", lambda: needed - 1)
    with pytest.raises(ResourceError, match=f"{needed >> 20} MiB") as caught:
        load_calibration(sources["sdar"], options(config.mode), 1024, config)
    assert caught.value.code == "E-MEM" and "--calibration forward" in caught.value.hint
    assert load_calibration(sources["sdar"], options(), 1024).tokens


def test_a_senseless_number_of_tokens_is_refused(sources):
    with pytest.raises(UsageProblem, match="0 calibration tokens"):
        load_calibration(sources["sdar"], options(), 0)


def test_the_effective_rank_counts_the_directions_that_carry_the_inputs():
    assert effective_rank(torch.eye(8, dtype=torch.float64)) == pytest.approx(8)
    direction = torch.arange(1.0, 9, dtype=torch.float64)
    assert effective_rank(torch.outer(direction, direction)) == pytest.approx(1)
    assert effective_rank(torch.diag(torch.tensor([5.0, 5, 0, 0]))) == pytest.approx(2)
    assert effective_rank(torch.zeros(4, 4)) == 0
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert 15 < effective_rank(x.T @ x / 4000) <= 16


def test_tokens_of_equal_weight_are_all_effective(sources):
    clean = load_calibration(sources["sdar"], options("clean"), 1024)
    coverage = measure_coverage(clean.batches, sources["sdar"].spec)
    assert coverage.effective_tokens == pytest.approx(coverage.tokens)
    forward = load_calibration(sources["sdar"], options(), 1024).coverage
    assert forward.effective_tokens < forward.tokens


TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m['content'] }}>{% endfor %}{{ eos_token }}"
TALK = [{"role": "user", "content": "who?"}]
NAMED = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]


@pytest.mark.parametrize("kept", [TEMPLATE, NAMED], ids=["one", "named"])
def test_a_chat_template_inside_the_tokenizer_config_is_found_by_calibration_and_export(tmp_path, kept):
    folder = make_checkpoint(tmp_path / "sdar", "sdar")
    (folder / "chat_template.jinja").unlink()
    source = open_checkpoint(folder)
    assert chat_renderer(source, read_tokenizer(source)) is None
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": kept}))
    source = open_checkpoint(folder)
    render = chat_renderer(source, read_tokenizer(source))
    assert render is not None and render(TALK) == "<who?><|endoftext|>"
    (tmp_path / "bundle").mkdir()
    copy_texts(folder, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "chat_template.jinja").read_text() == TEMPLATE
