"""The life of an engine: queue, cancel, close, callbacks, and threads, on the toy model."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from dlm_edge.errors import DlmEdgeError, JobError, UsageProblem
from dlm_edge.runtime import Finished, Frame, Started, Text
from dlm_edge.runtime.engine import Engine
from tests.runtime.conftest import toy_parts
from tests.runtime.toy import ToyModel
from tests.tiny import EOS_ID, MASK_ID, PAD_ID, VOCAB_SIZE

ROOT = Path(__file__).parents[2]


class GatedModel(ToyModel):
    """Waits in every run after the first `free` ones, until the gate opens or somebody terminates."""

    def __init__(self, free=0):
        super().__init__(vocab=VOCAB_SIZE, forbid=[EOS_ID, PAD_ID, MASK_ID])
        self.gate, self.waiting = threading.Event(), threading.Event()
        self.free = free

    def run(self, *args, **options):
        if len(self.runs) >= self.free:
            self.waiting.set()
            while not self.gate.is_set() and not self.stopped:
                time.sleep(0.001)
        return super().run(*args, **options)


def code_of(error):
    return error.value.code


def test_result_holds_what_it_promises(make_engine):
    result = make_engine().generate("some words", max_new_tokens=20, threshold=0.3)
    assert result.new_tokens == len(result.token_ids) == 20 and result.stop_reason == "length"
    assert result.steps <= 20 + 8 and result.forward_passes > result.steps
    assert result.steps_per_token == result.forward_passes / 20
    assert 0 <= result.prefill_seconds <= result.seconds
    assert result.effective_tokens_per_s == pytest.approx(20 / result.seconds)
    assert result.density == 1.0 and result.seed == 0
    assert result.prompt_tokens == len(make_engine().encode("some words"))


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm_v2"])
def test_stream_is_append_only_and_complete(make_engine, family):
    engine = make_engine(family)
    events = list(engine.stream("some words", max_new_tokens=30))
    result = events[-1].result
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    assert "".join(e.text for e in events if isinstance(e, Text)) == result.text
    assert result.text == engine.generate("some words", max_new_tokens=30).text
    frames = [e for e in events if isinstance(e, Frame)]
    assert frames and all(f.committed_tokens + len(f.cells) <= 30 for f in frames)
    assert [f.step for f in frames] == sorted({f.step for f in frames})
    assert any(cell.token_id is None for f in frames for cell in f.cells)


def test_slow_reader_misses_frames_and_no_text(make_engine):
    job = make_engine().submit("some words", max_new_tokens=40)
    result = job.result(10)
    events = list(job)
    assert [type(e) for e in events] == [Started, Text, Frame, Finished]
    assert events[1].text == result.text


def test_many_threads_get_the_serial_results(make_engine):
    engine = make_engine()
    prompts = [f"prompt number {i}" for i in range(24)]
    serial = [engine.generate(p, max_new_tokens=16, temperature=0.8, seed=i).token_ids for i, p in enumerate(prompts)]
    found = {}

    def work(first):
        for i in range(first, 24, 8):
            found[i] = engine.generate(prompts[i], max_new_tokens=16, temperature=0.8, seed=i).token_ids

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(24)] == serial
    assert len({tuple(ids) for ids in serial}) > 20


def test_cancel_inside_a_step_keeps_the_text(make_engine):
    model = GatedModel(free=12)
    engine = make_engine(model=model)
    job = engine.submit("some words", raw=True, max_new_tokens=40)
    assert model.waiting.wait(5) and job.state == "running"
    began = time.perf_counter()
    job.cancel()
    assert time.perf_counter() - began < 0.1
    result = job.result(5)
    assert job.state == "cancelled" and result.stop_reason == "cancelled"
    assert 0 < result.new_tokens < 40
    model.gate.set()
    whole = engine.generate("some words", raw=True, max_new_tokens=40)
    assert whole.token_ids[: result.new_tokens] == result.token_ids and whole.stop_reason == "length"


def test_cancel_in_the_queue_and_again_and_after_the_end(make_engine):
    model = GatedModel()
    engine = make_engine(model=model)
    running, queued = engine.submit("a", max_new_tokens=8), engine.submit("b", max_new_tokens=8)
    queued.cancel()
    assert queued.result(0).stop_reason == "cancelled" and queued.result(0).token_ids == []
    queued.cancel()
    model.gate.set()
    assert running.result(5).new_tokens == 8 and running.state == "done"
    running.cancel()
    assert running.state == "done" and running.result(0).stop_reason == "length"


def test_cancel_from_the_callback(make_engine):
    jobs, ready = [], threading.Event()

    def on_event(event):
        ready.wait(5)
        if isinstance(event, Frame) and event.step == 5:
            jobs[0].cancel()

    engine = make_engine()
    jobs.append(engine.submit("a", max_new_tokens=40, on_event=on_event))
    ready.set()
    assert jobs[0].result(5).steps == 5 and jobs[0].state == "cancelled"
    assert engine.generate("a", max_new_tokens=8).new_tokens == 8


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_cancel_from_a_signal_handler(make_engine):
    model = GatedModel(free=3)
    job = make_engine(model=model).submit("a", max_new_tokens=40)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: job.cancel())
    try:
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        assert job.result(5).stop_reason == "cancelled"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_leaving_a_stream_cancels(make_engine):
    model = GatedModel(free=3)
    engine = make_engine(model=model)
    stream = engine.stream("a", max_new_tokens=40)
    next(stream)
    stream.close()
    model.gate.set()
    assert engine.generate("a", max_new_tokens=8).new_tokens == 8


def test_result_timeout(make_engine):
    model = GatedModel()
    job = make_engine(model=model).submit("a", max_new_tokens=8)
    with pytest.raises(TimeoutError):
        job.result(0.02)
    model.gate.set()
    assert job.result(5).new_tokens == 8


def test_close_while_running_and_twice_and_use_after(make_engine):
    model = GatedModel(free=4)
    engine = make_engine(model=model)
    running, queued = engine.submit("a", max_new_tokens=40), engine.submit("b", max_new_tokens=40)
    assert model.waiting.wait(5)
    began = time.perf_counter()
    engine.close()
    assert time.perf_counter() - began < 2
    engine.close()
    assert running.result(1).stop_reason == queued.result(1).stop_reason == "cancelled"
    for use in (lambda: engine.generate("a"), lambda: engine.submit("a"), lambda: list(engine.stream("a"))):
        with pytest.raises(UsageProblem) as error:
            use()
        assert code_of(error) == "E-CLOSED"


def test_an_engine_nobody_holds_ends_its_thread():
    engine = Engine(toy_parts())
    engine.generate("a", max_new_tokens=8)
    thread, gone = engine._worker._thread, weakref.ref(engine)
    del engine
    gc.collect()
    thread.join(2)
    assert gone() is None and not thread.is_alive()


def test_callback_that_raises_cancels_and_reports(make_engine):
    engine = make_engine()

    def on_event(event):
        if isinstance(event, Text):
            raise ValueError("from the application")  # noqa: TRY004 - any exception of a caller

    job = engine.submit("a", max_new_tokens=40, on_event=on_event)
    with pytest.raises(JobError) as error:
        job.result(5)
    assert code_of(error) == "E-CANCELLED" and "from the application" in str(error.value)
    assert isinstance(error.value.__cause__, ValueError) and job.state == "failed"
    with pytest.raises(JobError):
        list(job)
    assert engine.generate("a", max_new_tokens=8).new_tokens == 8


def test_callback_that_calls_the_engine_is_refused(make_engine):
    engine, codes, jobs = make_engine(), [], []

    def on_event(event):
        if isinstance(event, Started):
            for call in (lambda: engine.generate("b"), lambda: engine.submit("b"), engine.close, jobs[0].result):
                try:
                    call()
                except DlmEdgeError as error:
                    codes.append(error.code)

    gate = threading.Event()
    jobs.append(engine.submit("a", max_new_tokens=8, on_event=lambda event: (gate.wait(5), on_event(event))))
    gate.set()
    assert jobs[0].result(5).new_tokens == 8 and codes == ["E-REENTRANT"] * 4


def test_slow_callback_does_not_hold_cancel_or_close(make_engine):
    entered, leave = threading.Event(), threading.Event()

    def on_event(event):
        entered.set()
        leave.wait(10)

    engine = make_engine()
    job = engine.submit("a", max_new_tokens=8, on_event=on_event)
    assert entered.wait(5)
    began = time.perf_counter()
    job.cancel()
    assert time.perf_counter() - began < 0.1
    leave.set()
    assert job.result(5).stop_reason == "cancelled"


def test_failed_job_leaves_the_engine_healthy(make_engine):
    class Failing(ToyModel):
        def run(self, *args, **options):
            if len(self.runs) == 3:
                self.runs.append(None)
                raise MemoryError("no more")
            return super().run(*args, **options)

    engine = make_engine(model=Failing(vocab=VOCAB_SIZE, forbid=[EOS_ID, PAD_ID, MASK_ID]))
    job = engine.submit("a", max_new_tokens=16)
    with pytest.raises(DlmEdgeError) as error:
        job.result(5)
    assert code_of(error) == "E-INTERNAL" and job.state == "failed"
    assert engine.generate("a", max_new_tokens=8).new_tokens == 8


def test_problems_of_the_request_show_at_submit(make_engine):
    engine = make_engine(memory_budget=1000, weight_bytes=10)
    for values, code in (
        ({"max_new_tokens": 0}, "E-PARAM"),
        ({"max_new_tokens": 10**6}, "E-CONTEXT"),
        ({"max_tokens": 5}, "E-PARAM"),
        ({"cache": "dual"}, "E-PARAM"),
        ({"steps": 1, "max_new_tokens": 64}, "E-PARAM"),
        ({}, "E-MEM"),
    ):
        with pytest.raises(DlmEdgeError) as error:
            engine.submit("a", **values)
        assert code_of(error) == code


def test_context_error_names_the_three_numbers(make_engine):
    with pytest.raises(UsageProblem) as error:
        make_engine().generate([1] * 300, max_new_tokens=300)
    assert all(number in error.value.message for number in ("300 tokens", "300 new", "512"))


def test_default_length_is_what_fits(make_engine):
    assert make_engine().generate([1] * 500).new_tokens == 12


@pytest.mark.parametrize("ids", [[MASK_ID], [-1], [VOCAB_SIZE], [2**63], [1.0], [True], ["1"], [None]])
def test_bad_ids_are_refused(make_engine, ids):
    with pytest.raises(UsageProblem) as error:
        make_engine().generate(ids)
    assert code_of(error) == "E-PROMPT"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_process_is_told():
    script = """
import os, sys, warnings
warnings.simplefilter("ignore")
from dlm_edge.runtime.engine import Engine
from dlm_edge.errors import DlmEdgeError
from tests.runtime.conftest import toy_parts
engine = Engine(toy_parts())
pid = os.fork()
if pid == 0:
    try:
        engine.generate("a", max_new_tokens=8)
    except DlmEdgeError as error:
        engine.close()
        os._exit(17 if error.code == "E-STATE" else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17
assert engine.generate("a", max_new_tokens=8).new_tokens == 8
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_interpreter_exit_with_a_running_job():
    script = """
import time
from dlm_edge.runtime.engine import Engine
from tests.runtime.conftest import toy_parts
from tests.runtime.test_engine import GatedModel
engine = Engine(toy_parts(model=GatedModel(free=4)))
job = engine.submit("a", max_new_tokens=40)
time.sleep(0.1)
print("leaving", job.state)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, timeout=20, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving running\n", "")
