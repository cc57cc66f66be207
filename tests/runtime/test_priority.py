"""Threads of a background engine yield to all others, and the application's own keep their priority."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime import Engine
from dlm_edge.runtime.priority import LOW, in_low_thread


def priorities():
    return {
        int(entry.name): os.getpriority(os.PRIO_PROCESS, int(entry.name)) for entry in Path("/proc/self/task").iterdir()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps a priority for each thread")
def test_all_threads_of_a_background_engine_are_low(bundles):
    own, before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), priorities()
    with Engine.open(bundles["sdar"][1], threads=3, background=True) as engine:
        wanted = engine.generate([5, 6, 7], max_new_tokens=8).token_ids
        new = {thread: value for thread, value in priorities().items() if thread not in before}
        assert len(new) >= 3 and set(new.values()) == {max(own, LOW)}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    with Engine.open(bundles["sdar"][1], threads=3) as engine:
        assert engine.generate([5, 6, 7], max_new_tokens=8).token_ids == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps a priority for each thread")
def test_errors_come_through():
    with pytest.raises(ZeroDivisionError):
        in_low_thread(lambda: 1 // 0)


def test_other_systems_refuse(bundles, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UsageProblem, match="Linux only"):
        Engine.open(bundles["sdar"][1], background=True)
