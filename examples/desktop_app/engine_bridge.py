"""The engine as a Qt object: whatever may take time happens on another thread, and comes back as a queued signal.

Three kinds of threads meet here. Qt's own runs the window and every slot below. The engine's worker denoises; all
that it does here is to say that there is something new. Opening, submitting and closing run in short threads of their
own, since a model takes seconds to load and a long prompt takes a while to encode.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from dlm_edge.errors import DlmEdgeError
from dlm_edge.runtime import Engine, EngineStats, Finished, Frame, Job, Started, Text

DISPLAY_INTERVAL_MS = 16  # 60 Hz: a display shows no more frames than that


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """What the window has to know of the model that is open."""

    path: Path
    family: str
    device: str
    max_positions: int
    stop_ids: tuple[int, ...]
    has_chat_template: bool
    keeps_prompts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as people read it."""

    code: str
    message: str
    hint: str

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        if isinstance(error, DlmEdgeError):
            return cls(code=error.code, message=error.message, hint=error.hint)
        traceback.print_exception(error)  # a bug: whoever reports it needs to know where
        return cls(code="E-INTERNAL", message=f"{type(error).__name__}: {error}", hint="please report this")


class EngineBridge(QObject):
    """One engine at a time, one job at a time. Every method is called on Qt's thread and returns at once."""

    opened = Signal(OpenModel)
    open_failed = Signal(Problem)  # the model that was open before stays open
    started = Signal(Started)
    text = Signal(str)  # committed: append it
    frame = Signal(Frame)  # provisional: replace the last one
    finished = Signal(Finished)
    failed = Signal(Problem)

    # From other threads to Qt's. Qt queues a signal that is emitted on another thread than its receiver's.
    _engine_ready = Signal(object, object)
    _job_ready = Signal(object)
    _something_new = Signal()

    def __init__(self, **options: Any) -> None:
        """`options` of Engine.open: threads, memory_budget, background, ..."""
        super().__init__()
        self._options = options
        self._engine: Engine | None = None
        self._job: Job | None = None
        self._is_busy = self._stop_asked = self._is_announced = False
        self._threads: list[threading.Thread] = []
        self._display = QTimer(self, interval=DISPLAY_INTERVAL_MS, singleShot=True)
        self._display.timeout.connect(self._show_news)
        self._engine_ready.connect(self._take_engine)
        self._job_ready.connect(self._take_job)
        self._something_new.connect(self._wait_for_display)

    @property
    def is_busy(self) -> bool:
        """From `generate` to `finished` or `failed`."""
        return self._is_busy

    def open(self, path: Path) -> None:
        """Ends in `opened` or `open_failed`. The model that is open meanwhile goes on working."""

        def work() -> None:
            try:
                engine = Engine.open(path, **self._options)
            except Exception as error:  # noqa: BLE001 - whatever it is, the user waits for an answer
                self.open_failed.emit(Problem.of(error))
            else:
                self._engine_ready.emit(path, engine)

        self._in_thread(work)

    def generate(self, prompt: str | list[dict[str, str]], settings: dict[str, Any]) -> None:
        """Ends in `finished` or `failed`; between them come `started`, `text` and `frame`."""
        assert self._engine is not None and not self._is_busy
        engine, self._is_busy, self._stop_asked = self._engine, True, False

        def work() -> None:
            try:
                job = engine.submit(prompt, **settings)
            except Exception as error:  # noqa: BLE001
                self._job_ready.emit(error)
            else:
                self._job_ready.emit(job)

        self._in_thread(work)

    def stop(self) -> None:
        """What is committed by then stays: `finished` follows, with the stop reason "cancelled"."""
        self._stop_asked = True
        if self._job is not None:
            self._job.cancel()

    def stats(self) -> EngineStats | None:
        return self._engine.stats() if self._engine is not None else None

    def close(self, timeout_s: float) -> bool:
        """Cancel and close. False where a model was still loading after `timeout_s`: that cannot be interrupted."""
        self.stop()
        self._display.stop()
        engine, self._engine = self._engine, None
        if engine is not None:
            self._in_thread(engine.close)
        for thread in self._threads:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    def _in_thread(self, work: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=work, name="desktop-app-work", daemon=True))
        self._threads[-1].start()

    def _take_engine(self, path: Path, engine: Engine) -> None:
        old, self._engine = self._engine, engine
        if old is not None:
            self._in_thread(old.close)  # cancels what it still works on
        self.opened.emit(
            OpenModel(
                path=path,
                family=engine.spec.family,
                device=engine.device,
                max_positions=engine.spec.max_positions,
                stop_ids=engine.spec.conventions.stop_ids,
                has_chat_template=engine.has_chat_template,
                keeps_prompts=engine.keeps_prompts,
            )
        )

    def _take_job(self, job: Job | Exception) -> None:
        if isinstance(job, Exception):
            self._end(self.failed, Problem.of(job))
            return
        self._job = job
        if self._stop_asked:
            job.cancel()
        job.watch(self._announce)

    def _announce(self) -> None:
        """On the engine's worker, at every event. One signal is under way at most: a step may take a millisecond."""
        if not self._is_announced:
            self._is_announced = True
            self._something_new.emit()

    def _wait_for_display(self) -> None:
        if not self._display.isActive():
            self._display.start()

    def _show_news(self) -> None:
        """All that has come since the last frame: a job joins texts, and keeps no frame but the latest."""
        self._is_announced = False  # before the poll, so that nothing that comes after it is lost
        job = self._job
        try:
            while job is not None and job is self._job and (events := job.poll()):
                for event in events:
                    self._show(event)
        except DlmEdgeError as error:
            self._end(self.failed, Problem.of(error))

    def _show(self, event: Started | Text | Frame | Finished) -> None:
        if isinstance(event, Started):
            self.started.emit(event)
        elif isinstance(event, Text):
            self.text.emit(event.text)
        elif isinstance(event, Frame):
            self.frame.emit(event)
        else:
            self._end(self.finished, event)

    def _end(self, signal: Any, value: Any) -> None:
        self._job, self._is_busy = None, False
        signal.emit(value)
