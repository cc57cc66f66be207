"""Counts and totals in the text format of Prometheus: nothing that tells one request from another."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dlm_edge.runtime.events import EngineStats, Result

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Metrics:
    """Changed on the event loop only."""

    responses: Counter[int] = field(default_factory=Counter)  # by status
    ended: Counter[str] = field(default_factory=Counter)  # generations by stop reason, or "failed"
    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    forward_passes: int = 0
    seconds: float = 0.0

    def count(self, result: Result) -> None:
        self.ended[result.stop_reason] += 1
        self.prompt_tokens += result.prompt_tokens
        self.new_tokens += result.new_tokens
        self.steps += result.steps
        self.forward_passes += result.forward_passes
        self.seconds += result.seconds

    def mean_seconds(self) -> float:
        """Of a generation, as the engine worked on it; 0 before the first one."""
        return self.seconds / max(sum(self.ended.values()), 1)

    def text(self, stats: EngineStats, in_flight: int) -> str:
        lines = [
            *labelled("dlm_edge_responses_total", "status", self.responses, "HTTP responses"),
            *labelled("dlm_edge_generations_total", "end", self.ended, "Ended generations"),
            *one("dlm_edge_prompt_tokens_total", "counter", self.prompt_tokens, "Tokens of prompts"),
            *one("dlm_edge_new_tokens_total", "counter", self.new_tokens, "Generated tokens"),
            *one("dlm_edge_steps_total", "counter", self.steps, "Denoising steps"),
            *one("dlm_edge_forward_passes_total", "counter", self.forward_passes, "Passes through the model"),
            *one("dlm_edge_generation_seconds_total", "counter", round(self.seconds, 3), "Time of generations"),
            *one("dlm_edge_requests_in_flight", "gauge", in_flight, "Requests for a generation, waiting or running"),
            *one("dlm_edge_jobs_queued", "gauge", stats.queued, "Generations that wait for the engine"),
            *one("dlm_edge_jobs_running", "gauge", stats.running, "Generations that the engine works on"),
            *one("dlm_edge_jobs_parallel", "gauge", stats.parallel, "Generations it works on at a time, at most"),
        ]
        return "\n".join(lines) + "\n"


def one(name: str, kind: str, value: float, about: str) -> list[str]:
    return [f"# HELP {name} {about}.", f"# TYPE {name} {kind}", f"{name} {value}"]


def labelled(name: str, label: str, values: Counter[int] | Counter[str], about: str) -> list[str]:
    rows = [f'{name}{{{label}="{key}"}} {values[key]}' for key in sorted(values, key=str)]  # type: ignore[index]
    return [f"# HELP {name} {about}.", f"# TYPE {name} counter", *rows]
