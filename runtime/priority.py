"""Threads that yield to the rest of the machine."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from dlm_edge.errors import UsageProblem

T = TypeVar("T")
LOW = 10  # of -20, the most urgent, to 19


def check_background() -> None:
    """E-PARAM where a thread has no priority of its own, which new threads inherit: everywhere but on Linux."""
    if sys.platform != "linux":
        raise UsageProblem("E-PARAM", "background priority is offered on Linux only", "lower that of the whole process")


def lower_this_thread() -> None:
    """For good: raising it again takes a privilege."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), LOW))


def in_low_thread(function: Callable[[], T]) -> T:
    """Call `function` in a thread of low priority, so that threads which it starts, as ONNX Runtime's pool, have it too."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            lower_this_thread()
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller
            future.set_exception(error)

    thread = threading.Thread(target=run, name="dlm-edge-open")
    thread.start()
    thread.join()
    return future.result()
