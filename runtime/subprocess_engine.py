"""The engine's interface with the model in a process of its own, whose crash does not take the application along."""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.child_process import ChildProcess, Owner
from dlm_edge.runtime.engine import follow
from dlm_edge.runtime.events import EngineStats, Event, Result
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.pipe_protocol import (
    Call,
    Open,
    Submit,
)
from dlm_edge.runtime.request import Prompt
from dlm_edge.runtime.worker import closed


class SubprocessEngine:
    """Same verbs and errors as Engine. When the process dies, its jobs fail with E-CRASH and the next request starts it
    again. Events come on a thread of this engine, in the order of the jobs' own."""

    def __init__(self, path: Path | str, device: str, options: dict[str, Any], command: Sequence[str]) -> None:
        if options.get("guide") is not None:
            options = options | {"guide": str(Path(options["guide"]).resolve())}
        self._opening = (str(Path(path).resolve()), {"device": device} | options)
        self._command = list(command)
        self._lock = threading.Lock()
        self._closed = False
        self._child, self._about = self._start()
        self._finalizer = weakref.finalize(self, end_child, [self._child])

    @classmethod
    def open(
        cls, path: Path | str, device: str = "auto", *, command: Sequence[str] | None = None, **options: Any
    ) -> Self:
        """`options` of Engine.open. `command` starts `dlm_edge.runtime.child.main()`; a frozen application gives its own,
        such as [sys.executable, "--child"]. Raises what Engine.open raises."""
        return cls(path, device, options, command or [sys.executable, "-m", "dlm_edge.runtime.child"])

    @property
    def spec(self) -> ModelSpec:
        return msgspec.convert(self._about["spec"], ModelSpec)

    @property
    def device(self) -> str:
        return str(self._about["device"])

    @property
    def has_chat_template(self) -> bool:
        return bool(self._about["has_chat_template"])

    @property
    def keeps_prompts(self) -> bool:
        return bool(self._about["keeps_prompts"])

    @property
    def process_id(self) -> int:
        return self._child.process.pid

    @property
    def is_closed(self) -> bool:
        return self._closed

    def generate(self, prompt: Prompt, *, raw: bool = False, **settings: Any) -> Result:
        return self.submit(prompt, raw=raw, is_watched=False, **settings).result()

    def stream(self, prompt: Prompt, *, raw: bool = False, **settings: Any) -> Iterator[Event]:
        return follow(self.submit(prompt, raw=raw, **settings))

    def submit(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        on_event: Callable[[Event], None] | None = None,
        is_watched: bool = True,
        **settings: Any,
    ) -> Job:
        """What the engine refuses comes as the job's error, not from here."""
        for name, value in settings.items():
            if isinstance(value, float) and not math.isfinite(value):  # JSON would make it null: the default
                raise UsageProblem("E-PARAM", f"{name} is {value}", "give a finite number")
        child = self._alive()
        owner = Owner(child)
        given: str | list[Any] = prompt if isinstance(prompt, str) else list(prompt)

        def request(number: int) -> Submit:
            owner.number = number
            return Submit(number, given, raw, is_watched, settings)

        job = Job(owner, on_event=on_event, is_watched=is_watched)
        child.ask(request, job)
        return job

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        return list(self._call("encode", prompt=prompt if isinstance(prompt, str) else list(prompt), raw=raw))

    def save_prompt_cache(self, path: Path | str) -> int:
        return int(self._call("save_prompt_cache", path=str(Path(path).resolve())))

    def load_prompt_cache(self, path: Path | str) -> int:
        return int(self._call("load_prompt_cache", path=str(Path(path).resolve())))

    def forget_prompt(self) -> None:
        self._call("forget_prompt")

    def stats(self) -> EngineStats:
        return msgspec.convert(self._call("stats"), EngineStats)

    def close(self, *, wait: bool = False) -> None:
        """Cancel all jobs, or `wait` for them, and end the process. Closing again does nothing."""
        if threading.current_thread() is self._child.reader:
            raise UsageProblem("E-REENTRANT", "the engine was called from its own callback", "call it elsewhere")
        with self._lock:
            self._closed = True
        self._child.end(wait=wait)
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, verb: Any, **arguments: Any) -> Any:
        child, future = self._alive(), Future[Any]()
        if threading.current_thread() is child.reader:
            raise UsageProblem("E-REENTRANT", "the engine was called from its own callback", "call it elsewhere")
        child.ask(lambda n: Call(n, verb, arguments), future)
        return future.result()

    def _alive(self) -> ChildProcess:
        """The process, started again where it has died. Raises E-CLOSED."""
        with self._lock:
            if self._closed:
                raise closed()
            if self._child.has_ended:
                self._child, self._about = self._start()
                self._finalizer.detach()
                self._finalizer = weakref.finalize(self, end_child, [self._child])
            return self._child

    def _start(self) -> tuple[ChildProcess, dict[str, Any]]:
        child, ready = ChildProcess(self._command), Future[Any]()
        try:
            child.ask(lambda n: Open(n, *self._opening), ready)
            return child, ready.result()
        except BaseException:
            child.end(wait=False)
            raise


def end_child(children: list[ChildProcess]) -> None:
    for child in children:
        child.end(wait=False)
