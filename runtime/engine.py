"""The engine an application embeds: open a bundle, generate, stream, submit, close."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.budget import cache_bytes, check_budget
from dlm_edge.runtime.events import EngineStats, Event, Result
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.job_runner import JobRunner
from dlm_edge.runtime.opening import Parts, open_parts
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.request import Prompt, encode, prepare
from dlm_edge.runtime.seats import Seats
from dlm_edge.runtime.worker import Worker


class Engine:
    """One model, one worker thread; every method may be called from any thread, except from a callback.

        with Engine.open(folder) as engine:
            print(engine.generate("Once upon a time", max_new_tokens=64).text)

    Settings are the fields of GenerateSettings. An engine that nobody holds any more closes itself.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        room = None if parts.memory_budget is None else parts.memory_budget - parts.all_weight_bytes
        guides = () if parts.guide is None else parts.guide.models
        seats = Seats([parts.model, *parts.more_models], room, guides)
        self._worker = Worker(seats, JobRunner(parts.spec.conventions, parts.codec), background=parts.background)
        self._finalizer = weakref.finalize(self, self._worker.close)  # also at the interpreter's exit

    @classmethod
    def open(
        cls,
        path: Path | str,
        device: str = "auto",
        *,
        threads: int | None = None,
        memory_budget: int | str | None = None,
        parallel: int = 1,
        background: bool = False,
        guide: Path | str | None = None,
    ) -> Engine:
        """`memory_budget` in bytes or as "6GiB": refused with E-MEM where weights and caches would exceed it. `parallel`
        jobs are in flight at once, block by block in turns, each with caches of its own; others wait. `background`: the
        model's threads yield to all others of the machine (Linux). `guide`: a smaller model's bundle with the same
        vocabulary, for the sampler guided; its weights and caches count, too."""
        parts = open_parts(
            Path(path),
            device,
            threads=threads,
            memory_budget=memory_budget,
            parallel=parallel,
            background=background,
            guide=None if guide is None else Path(guide),
        )
        return cls(parts)

    @property
    def spec(self) -> ModelSpec:
        return self.parts.spec

    @property
    def device(self) -> str:
        return self.parts.device

    @property
    def has_chat_template(self) -> bool:
        return self.parts.template is not None

    @property
    def is_closed(self) -> bool:
        return self._worker.is_closed

    def generate(self, prompt: Prompt, *, raw: bool = False, **settings: Any) -> Result:
        """Wait for the whole text. `prompt`: text (wrapped by the chat template unless `raw`), messages, or ids."""
        return self._submit(prompt, raw, settings, is_watched=False).result()

    def submit(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        on_event: Callable[[Event], None] | None = None,
        is_watched: bool = True,
        **settings: Any,
    ) -> Job:
        """Queue a job. `on_event` is called on the worker thread; what it raises cancels the job. Without `is_watched` there
        are no frames, which take a little time."""
        return self._submit(prompt, raw, settings, on_event=on_event, is_watched=is_watched)

    def stream(self, prompt: Prompt, *, raw: bool = False, **settings: Any) -> Iterator[Event]:
        """Events as they come. Leaving the loop early cancels the job."""
        return follow(self._submit(prompt, raw, settings))

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The token ids that the model will see. Raises E-PROMPT, E-UTF8, E-TEMPLATE and E-TOK."""
        return encode(self.parts, prompt, raw=raw)

    @property
    def keeps_prompts(self) -> bool:
        """Whether a request can reuse what the one before it stored: only where no key depends on later blocks."""
        return isinstance(self.parts.model, OrtStepModel) and self.parts.spec.conventions.attention != "full"

    def save_prompt_cache(self, path: Path | str) -> int:
        """Write what the last request stored of prompt and text to a file, after the jobs that wait; its positions.

        Raises E-STATE where nothing is stored, E-IO.
        """
        from dlm_edge.runtime.prompt_cache import save_prompt_cache

        self._check_keeps_prompts()
        return self._worker.call(lambda: save_prompt_cache(Path(path), self._latest_model(), self.parts.bundle_hash))

    def load_prompt_cache(self, path: Path | str) -> int:
        """Let the next request begin with what `save_prompt_cache` wrote with this bundle; its positions.

        Raises E-CACHE for every other file (nothing is stored then), E-STATE where the model cannot reuse it.
        """
        from dlm_edge.runtime.prompt_cache import load_prompt_cache

        self._check_keeps_prompts()

        def load() -> int:
            return load_prompt_cache(Path(path), self._latest_model(), self.parts.bundle_hash, self._admit)

        return self._worker.call(load)

    def _admit(self, positions: int) -> None:
        """Room for a prompt that is loaded: no job is in flight then. Raises E-MEM."""
        parts, seats = self.parts, self._worker.seats
        working = cache_bytes(parts.spec, parts.cache_layout, parts.cache_group, positions)
        check_budget(parts.memory_budget, parts.all_weight_bytes, working)
        seats.hold(seats.latest, working)

    def forget_prompt(self) -> None:
        """Let the next request compute its whole prompt."""
        self._worker.call(self._worker.seats.forget)

    def _latest_model(self) -> OrtStepModel:
        model = self._worker.seats.latest.model
        assert isinstance(model, OrtStepModel), "keeps_prompts was checked"
        return model

    def _check_keeps_prompts(self) -> None:
        self._worker.check_usable()
        if not self.keeps_prompts:
            message = "with full attention every key depends on the whole text, so no prompt can be kept"
            raise UsageProblem("E-STATE", message, "use a model with block-causal attention")

    def stats(self) -> EngineStats:
        """Of this moment; may be asked from any thread."""
        queued, running = self._worker.counts()
        reserved = sum(seat.reserved for seat in self._worker.seats.all)
        return EngineStats(
            queued=queued,
            running=running,
            parallel=len(self._worker.seats.all),
            weight_bytes=self.parts.all_weight_bytes,
            working_bytes=reserved,
            memory_budget=self.parts.memory_budget,
        )

    def close(self, *, wait: bool = False) -> None:
        """Refuse new jobs, cancel all others, or `wait` for them, and end the worker. Closing again does nothing."""
        if self._worker.is_own_thread():
            self._worker.check_usable()
        if wait:
            self._worker.close(wait=True)
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(
        self,
        prompt: Prompt,
        raw: bool,
        values: dict[str, Any],
        *,
        on_event: Callable[[Event], None] | None = None,
        is_watched: bool = True,
    ) -> Job:
        self._worker.check_usable()
        request = prepare(self.parts, self.encode(prompt, raw=raw), values)
        job = Job(self._worker, request, on_event=on_event, is_watched=is_watched)
        self._worker.put(job)
        return job


def follow(job: Job) -> Iterator[Event]:
    try:
        yield from job
    finally:
        job.cancel()
