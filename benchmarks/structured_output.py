"""Structured output: is every text valid, what does it cost, and does it hurt where the model knows the answer anyway?

    python benchmarks/structured_output.py reference --json

Generated schemas and regular expressions at several parallelisms, each text checked by jsonschema or `re`; then the
task `json` with and without the schema that its answers meet. Exit code 1 where a text is not valid.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import numpy as np

from dlm_edge.artifacts import resolve_bundle
from dlm_edge.cli.output import print_json, table
from dlm_edge.errors import UsageProblem
from dlm_edge.evaluation.tasks import NAMES, make_samples
from dlm_edge.runtime import Engine
from dlm_edge.runtime.constraints.reducer import ConstrainedReducer

DECODING: dict[str, dict[str, Any]] = {
    "static": {"sampler": "static"},
    "threshold 0.9": {"sampler": "threshold", "threshold": 0.9},
    "threshold 0": {"sampler": "threshold", "threshold": 0.0},  # all at once
}
ROOM = 24  # tokens beyond the shortest text
JSON_TOKENS = 32  # of an answer to the task
WORDS = ("name", "age", "city", "size", "kind", "tags", "note", "count", "when", "ok")


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    kind = rng.choice(kinds + (["object", "array", "anyOf"] * 2 if depth < 3 else [])) if depth else "object"
    low = rng.randint(-50, 50)
    if kind == "object":
        names = rng.sample(WORDS, rng.randint(1, 4))
        found: dict[str, Any] = {"type": "object", "properties": {n: random_schema(rng, depth + 1) for n in names}}
        found["required"] = rng.sample(names, rng.randint(0, len(names)))
        if rng.random() < 0.5:
            found["additionalProperties"] = rng.choice([False, {"type": "integer"}])
        return found
    if kind == "array":
        few = rng.randint(0, 2)
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": few, "maxItems": few + 2}
    leaves: dict[str, dict[str, Any]] = {
        "string": {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(3, 20)},
        "integer": {"type": "integer", "minimum": low, "maximum": low + rng.randint(5, 500)},
        "number": {"type": "number", rng.choice(["minimum", "exclusiveMinimum"]): low / 4},
        "enum": {"enum": rng.sample([*NAMES, 1, 2.5, None, True], 3)},
        "const": {"const": rng.choice([*NAMES, 0, {"a": [1, "b"]}])},
        "pattern": {"type": "string", "pattern": random_pattern(rng)},
        "format": {"type": "string", "format": rng.choice(["date", "time", "uuid", "email", "ipv4"])},
    }
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    return leaves.get(kind, {"type": kind})


def random_pattern(rng: random.Random, depth: int = 0) -> str:
    if depth == 3 or rng.random() < 0.35:
        return rng.choice(
            ["a", "Bob", "[a-z]", "[A-Z][a-z]+", r"\d", r"[0-9]{2,4}", "[^x]", " ", "é", r"\w", r"\.", "x?y"]
        )
    parts = [random_pattern(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.4:
        return f"(?:{'|'.join(parts)})"
    return f"(?:{''.join(parts)}){rng.choice(['', '', '*', '+', '?', '{1,3}', '{2}'])}"


@contextmanager
def measured_constraint() -> Iterator[list[float]]:
    """Seconds of each step's constrained scores, beyond those of the plain ones."""
    original, seconds = ConstrainedReducer.reduce, list[float]()

    def reduce(self: ConstrainedReducer, rows: Any, positions: Any, step: int) -> Any:
        began = time.perf_counter()
        self.scorer.reduce(rows, positions, step)
        between = time.perf_counter()
        found = original(self, rows, positions, step)
        seconds.append(time.perf_counter() - between - (between - began))
        return found

    ConstrainedReducer.reduce = reduce  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        ConstrainedReducer.reduce = original  # type: ignore[method-assign]


def run_all(engine: Engine, kind: str, constraints: list[Any], decoding: dict[str, Any], seed: int) -> dict[str, Any]:
    """Each constraint once, with a prompt that has nothing to do with it; every third drawn at temperature 1, and every
    fourth once more, for the cost where its automaton is known already."""
    prompts = [sample.prompt for sample in make_samples("copy", len(constraints) + 1, seed)]
    new, again = Times(), Times()
    n_valid = 0
    for index, constraint in enumerate(constraints):
        drawn = {"temperature": 1.0, "seed": index} if index % 3 == 2 else {}
        asked = {kind: constraint, "max_new_tokens": room(engine, kind, constraint), **decoding, **drawn}
        text = new.generate(engine, prompts[index], asked)
        is_good = is_valid(kind, constraint, text)
        if index % 4 == 0:
            is_good &= is_valid(kind, constraint, again.generate(engine, prompts[index + 1], asked))
        if not is_good:
            print(f"not valid: {constraint!r} -> {text!r}", file=sys.stderr)
        n_valid += is_good
    return {"n": len(constraints), "valid": n_valid, "new": new.summary(), "again": again.summary()}


@dataclass
class Times:
    """Of several requests: all seconds, and those of each step's constrained scores beyond the plain ones."""

    seconds: float = 0.0
    tokens: int = 0
    forward_passes: int = 0
    constraint: list[float] = field(default_factory=list)

    def generate(self, engine: Engine, prompt: str, asked: dict[str, Any]) -> str:
        with measured_constraint() as own:
            began = time.perf_counter()
            result = engine.generate(prompt, raw=True, **asked)
            self.seconds += time.perf_counter() - began
        self.tokens += result.new_tokens
        self.forward_passes += result.forward_passes
        self.constraint += own
        return result.text

    def summary(self) -> dict[str, Any]:
        steps = np.array(self.constraint) * 1e3
        return {
            "seconds": self.seconds,
            "tokens": self.tokens,
            "forward_passes": self.forward_passes,
            "constraint_share": float(steps.sum() / 1e3 / self.seconds),
            "constraint_ms_per_step": {"median": float(np.median(steps)), "p95": float(np.quantile(steps, 0.95))},
        }


def room(engine: Engine, kind: str, constraint: Any) -> int:
    """Tokens of the shortest text, as the refusal of too small a room names them, and some more."""
    try:
        engine.submit("x", raw=True, max_new_tokens=1, **{kind: constraint}).cancel()
    except UsageProblem as error:
        found = re.search(r"takes (\d+) tokens", error.message)
        if not found:
            raise
        return int(found[1]) + ROOM
    return 1 + ROOM


def is_valid(kind: str, constraint: Any, text: str) -> bool:
    if kind == "regex":
        return re.fullmatch(constraint, text) is not None
    try:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(constraint, format_checker=checker).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def exact_match(engine: Engine, n_samples: int, decoding: dict[str, Any], seed: int) -> dict[str, Any]:
    """The answers are objects of two or three numbers with names as keys."""
    properties = {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in NAMES}
    schema = {"type": "object", "additionalProperties": properties[NAMES[0]]}
    found: dict[str, Any] = {"n": n_samples}
    for name, constraint in (("unconstrained", {}), ("constrained", {"json_schema": schema})):
        began, right, valid = time.perf_counter(), 0, 0
        for sample in make_samples("json", n_samples, seed):
            result = engine.generate(sample.prompt, raw=True, max_new_tokens=JSON_TOKENS, **decoding, **constraint)
            right += sample.is_correct(result.text)
            valid += is_valid("json_schema", schema, result.text)
        seconds = time.perf_counter() - began
        found[name] = {"exact_match": right / n_samples, "valid": valid / n_samples, "seconds": seconds}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundle, a checkpoint or `reference`")
    parser.add_argument("--constraints", type=int, default=200, metavar="N", help="of each kind")
    parser.add_argument("--samples", type=int, default=500, metavar="N", help="of the task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["json_schema", "regex", "task"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    constraints = {
        "json_schema": [random_schema(rng) for _ in range(options.constraints)],
        "regex": [random_pattern(rng) for _ in range(options.constraints)],
    }
    report: dict[str, Any] = {
        "model": options.model,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "settings": {"seed": options.seed, "room": ROOM, "json_tokens": JSON_TOKENS, "decoding": DECODING},
        "json_schema": {},
        "regex": {},
        "task": {},
    }
    with Engine.open(resolve_bundle(options.model, say=lambda text: None), threads=1) as engine:
        for name, decoding in DECODING.items():
            for kind in constraints:
                if options.only in (None, kind):
                    report[kind][name] = run_all(engine, kind, constraints[kind], decoding, options.seed)
            if options.only in (None, "task"):
                report["task"][name] = exact_match(engine, options.samples, decoding, options.seed)
    if options.json:
        print_json(report)
    else:
        print(shown(report))
    return int(any(r["valid"] < r["n"] for kind in constraints for r in report[kind].values()))


def shown(report: dict[str, Any]) -> str:
    rows = [["constraint", "decoding", "valid", "share of time, new", "known", "ms per step, new", "known"]]
    for kind in ("json_schema", "regex"):
        for name, found in report[kind].items():
            both = [found[how] for how in ("new", "again")]
            shares = [f"{each['constraint_share']:.0%}" for each in both]
            steps = [f"{each['constraint_ms_per_step']['median']:.1f}" for each in both]
            rows.append([kind, name, f"{found['valid']} / {found['n']}", *shares, *steps])
    for name, found in report["task"].items():
        match = [f"{found[how]['exact_match']:.3f}" for how in ("unconstrained", "constrained")]
        rows.append(["task json", name, " -> ".join(match), "", "", "", ""])
    return table(rows)


if __name__ == "__main__":
    sys.exit(main())
