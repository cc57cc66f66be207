"""`evaluate`: quality of an artefact as it runs: masked NLL, exact match per task, commit flips against another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from dlm_edge.artifacts import resolve_bundle
from dlm_edge.bundle import open_bundle
from dlm_edge.decoding import decoding_settings, shown
from dlm_edge.errors import UsageProblem
from dlm_edge.evaluation.commit_flips import count_flips, record_steps
from dlm_edge.evaluation.masked_nll import MaskedNll, masked_nll, standard_error, text_windows
from dlm_edge.evaluation.tasks import LONG_TASKS, SHORT_TASKS, Sample, make_samples
from dlm_edge.nearest import nearest
from dlm_edge.runtime import Engine, Result
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.sampler_options import sampler_options
from dlm_edge.runtime.samplers import SAMPLERS

WINDOW = 256  # tokens of a text window


class Suite(msgspec.Struct, frozen=True):
    windows: int
    samples: dict[str, int]  # per task
    flip_prompts: int


SUITES = {
    "quick": Suite(24, dict.fromkeys(SHORT_TASKS, 20) | {"find_256": 20, "find_512": 10}, 6),
    "full": Suite(200, dict.fromkeys([*SHORT_TASKS, *LONG_TASKS], 500), 60),
}


class EvalReport(msgspec.Struct, kw_only=True):
    """Keys of `dlm-edge eval --json`; NLL in nats per token, `delta_*` against the other artefact, window by window."""

    masked_nll: float
    masked_nll_se: float
    bits_per_byte: float
    masked_nll_by_bucket: list[dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    exact_match: float
    exact_match_se: float
    steps_per_token: float
    steps_per_block: float
    density: float
    active_rows: float
    effective_tokens_per_s: float
    commit_flip_rate: float | None = None
    delta_nll: float | None = None
    delta_nll_se: float | None = None
    delta_by_bucket: list[dict[str, Any]] | None = None
    sampler: str
    suite: str
    seed: int
    samples: int


def evaluate(
    artefact: str | Path,
    *,
    suite: str = "quick",
    against: str | Path | None = None,
    sampler: str = "threshold",
    options: Mapping[str, Any] | None = None,
    tasks: list[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    attention: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> EvalReport:
    """Measure the bundle or checkpoint `artefact`; sets of samples follow from `seed` and are the same for all.

    `attention`: settings of sparse attention for the tasks, such as {"attention": "losa"}; the NLL is of dense attention.
    `options`: the sampler's own settings, such as {"threshold": 0.8}.
    `tasks` and `samples` replace the suite's choice of tasks and its number of samples per task.
    """
    say = progress or (lambda _: None)
    plan = plan_tasks(suite, tasks, samples)
    decoding = decoding_settings(sampler, options or {})
    bundle = resolve_bundle(artefact)
    other = None if against is None else resolve_bundle(against)  # before minutes of work, not after them
    say(f"masked NLL over {SUITES[suite].windows} windows of held-out text")
    own, bytes_per_token = score_text(bundle, SUITES[suite].windows, seed, threads)
    scored = score_tasks(bundle, plan, decoding | dict(attention or {}), seed, threads, say)
    matches = sum(s["exact_match"] * s["n"] for s in scored.tasks.values())
    asked = sum(s["n"] for s in scored.tasks.values())
    report = EvalReport(
        masked_nll=float(own.bound.mean()),
        masked_nll_se=standard_error(own.bound),
        bits_per_byte=float(own.bound.mean()) / math.log(2) / bytes_per_token,
        masked_nll_by_bucket=own.by_bucket(),
        tasks=scored.tasks,
        exact_match=matches / asked,
        exact_match_se=binomial_error(matches / asked, asked),
        steps_per_token=scored.forward_passes / max(scored.new_tokens, 1),
        steps_per_block=scored.steps / max(scored.blocks, 1),
        density=scored.density / max(scored.steps, 1),
        active_rows=scored.active_rows / max(scored.steps, 1),
        effective_tokens_per_s=scored.new_tokens / scored.seconds,
        sampler=shown(decoding),
        suite=suite,
        seed=seed,
        samples=asked,
    )
    if other is not None:
        say(f"against {against}")
        compare(report, own, bundle, other, decoding, seed, threads)
    return report


def plan_tasks(suite: str, tasks: list[str] | None, samples: int | None) -> dict[str, int]:
    known = {**SHORT_TASKS, **LONG_TASKS}
    for name in tasks or []:
        if name not in known:
            raise UsageProblem("E-USAGE", f"task {name!r} is not known", nearest(name, known))
    plan = SUITES[suite].samples
    if tasks:
        plan = {name: plan.get(name, 20) for name in tasks}
    return dict.fromkeys(plan, samples) if samples else plan


def score_text(bundle: Path, windows: int, seed: int, threads: int | None) -> tuple[MaskedNll, float]:
    """Masked NLL of `windows` windows, and the bytes per token of the text."""
    ids, bytes_per_token = text_windows(read_tokenizer(bundle), windows, WINDOW)
    with Engine.open(bundle, threads=threads) as engine:
        return masked_nll(engine.parts.model, engine.spec, ids, seed), bytes_per_token


def read_tokenizer(bundle: Path) -> Tokenizer:
    return Tokenizer.from_file(str(open_bundle(bundle).tokenizer_path))


class TaskScores(msgspec.Struct):
    tasks: dict[str, dict[str, Any]]
    forward_passes: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    blocks: int = 0
    density: float = 0.0  # this and the next: sums over requests, weighted by their steps
    active_rows: float = 0.0

    def add(self, result: Result) -> None:
        self.forward_passes += result.forward_passes
        self.new_tokens += result.new_tokens
        self.seconds += result.seconds
        self.steps += result.steps
        self.blocks += result.blocks
        self.density += result.steps * result.density
        self.active_rows += result.steps * result.active_rows


def score_tasks(
    bundle: Path,
    plan: dict[str, int],
    options: dict[str, Any],
    seed: int,
    threads: int | None,
    say: Callable[[str], None],
) -> TaskScores:
    scores = TaskScores({})
    tokenizer = read_tokenizer(bundle)
    with Engine.open(bundle, threads=threads) as engine:
        for name, count in plan.items():
            right = 0
            for sample in make_samples(name, count, seed):
                result = engine.generate(sample.prompt, max_new_tokens=answer_length(tokenizer, sample), **options)
                right += sample.is_correct(result.text)
                scores.add(result)
            accuracy = right / count
            scores.tasks[name] = {
                "exact_match": accuracy,
                "n": count,
                "standard_error": binomial_error(accuracy, count),
            }
            say(f"{name:12} {accuracy:7.1%} of {count}")
    return scores


def answer_length(tokenizer: Tokenizer, sample: Sample) -> int:
    """Room for the right answer, its end, and a few tokens of a wrong one."""
    return len(tokenizer.encode(sample.answer, add_special_tokens=False).ids) + 8


def binomial_error(share: float, count: int) -> float:
    return math.sqrt(share * (1 - share) / count)


def compare(
    report: EvalReport,
    own: MaskedNll,
    bundle: Path,
    other: Path,
    decoding: Mapping[str, Any],
    seed: int,
    threads: int | None,
) -> None:
    """Differences to the reference artefact `other`, paired on the same states."""
    if open_bundle(bundle).manifest.model.vocab_size != open_bundle(other).manifest.model.vocab_size:
        raise UsageProblem(
            "E-USAGE", f"{bundle} and {other} have different vocabularies", "compare variants of one model"
        )
    theirs, _ = score_text(other, len(own.bound), seed, threads)
    difference = own.bound - theirs.bound
    report.delta_nll, report.delta_nll_se = float(difference.mean()), standard_error(difference)
    report.delta_by_bucket = [
        {"low": a["low"], "high": a["high"], "nll": a["nll"] - b["nll"]}
        for a, b in zip(own.by_bucket(), theirs.by_bucket(), strict=True)
        if a["tokens"]
    ]
    report.commit_flip_rate = flip_rate(bundle, other, report.suite, decoding, seed, threads)


def flip_rate(
    bundle: Path, reference: Path, suite: str, decoding: Mapping[str, Any], seed: int, threads: int | None
) -> float:
    chosen = SAMPLERS[decoding["sampler"]]
    flips = steps = 0
    tokenizer = read_tokenizer(bundle)
    with Engine.open(bundle, threads=threads) as own, Engine.open(reference, threads=threads) as other:
        conventions = own.spec.conventions
        names = list(SHORT_TASKS)
        for i in range(SUITES[suite].flip_prompts):
            sample = make_samples(names[i % len(names)], i // len(names) + 1, seed)[-1]
            settings = DecodeSettings(
                gen_len=answer_length(tokenizer, sample),
                block_length=conventions.block_length,
                sub_block_length=conventions.sub_block_length,
                options=sampler_options(chosen, decoding["sampler_options"]),
                stop_ids=conventions.stop_ids,
            )
            states = record_steps(other.parts.model, other.spec, other.encode(sample.prompt), settings, chosen)
            flips += count_flips(own.parts.model, own.spec, states, chosen, settings)
            steps += len(states)
    return flips / steps
