"""Several jobs in flight: fair turns, results as if alone, seats by what they hold, and a budget over all of them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from dlm_edge.runtime.job import Request
from dlm_edge.runtime.seats import Seats
from tests.runtime.test_engine import GatedModel
from tests.runtime.toy import ToyModel
from tests.tiny import EOS_ID, MASK_ID, PAD_ID, VOCAB_SIZE


def toy_models(n):
    return [ToyModel(vocab=VOCAB_SIZE, forbid=[EOS_ID, PAD_ID, MASK_ID]) for _ in range(n)]


@pytest.fixture
def make_parallel(make_engine):
    def make(n, family="sdar", **changes):
        first, *others = toy_models(n)
        return make_engine(family, model=first, more_models=others, **changes)

    return make


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm_v2"])
def test_results_are_those_of_running_alone(make_parallel, family):
    requests = [
        ([5 + i, 6, 7 + i], {"max_new_tokens": 8 + 5 * i, "temperature": 0.7 * (i % 2), "seed": i}) for i in range(9)
    ]
    alone = make_parallel(1, family)
    wanted = [alone.generate(prompt, **settings).token_ids for prompt, settings in requests]
    engine = make_parallel(4, family)
    jobs = [engine.submit(prompt, **settings) for prompt, settings in requests]
    assert [job.result(30).token_ids for job in jobs] == wanted


def test_a_short_job_does_not_wait_for_a_long_one(make_engine):
    gated, (other,) = GatedModel(free=10), toy_models(1)
    engine = make_engine(model=gated, more_models=[other])
    order, steps = [], {"long": 0, "short": 0}

    def count(name):
        def on_event(event):
            steps[name] += event.__class__.__name__ == "Frame"
            order.append(name)

        return on_event

    gated.gate.set()
    long = engine.submit([5, 6], max_new_tokens=400, on_event=count("long"), sampler="static")
    short = engine.submit([7, 8], max_new_tokens=16, on_event=count("short"), sampler="static")
    short.result(30)
    assert not long.state == "done" and steps["long"] < 100, "turns of a block each"
    long.result(60)
    assert len(set(order[: order.index("short") + 40])) == 2


def test_cancel_ends_only_its_own_job(make_engine):
    gated, (other,) = GatedModel(free=3), toy_models(1)
    engine = make_engine(model=gated, more_models=[other])
    stuck, waits = engine.submit([5, 6], max_new_tokens=64), engine.submit([7, 8], max_new_tokens=16)
    assert gated.waiting.wait(5)
    stuck.cancel()
    assert stuck.result(5).stop_reason == "cancelled"
    assert waits.result(5).new_tokens == 16


def test_a_failing_job_leaves_the_others_alone(make_engine):
    class Broken(ToyModel):
        def run(self, *args, **options):
            if len(self.runs) > 4:
                raise FloatingPointError("planted")
            return super().run(*args, **options)

    (good,) = toy_models(1)
    engine = make_engine(model=Broken(vocab=VOCAB_SIZE, forbid=[EOS_ID, PAD_ID, MASK_ID]), more_models=[good])
    bad, fine = engine.submit([5, 6], max_new_tokens=64), engine.submit([7, 8], max_new_tokens=64)
    with pytest.raises(Exception, match="planted"):
        bad.result(10)
    assert fine.result(10).new_tokens == 64


class FakeJob:
    def __init__(self, ids, working_bytes):
        self.request = Request(ids, None, None, working_bytes)


class FakeModel:
    def __init__(self, ids=()):
        self.ids, self.discarded = list(ids), 0

    def stored_prefix(self, ids):
        equal = [a == b for a, b in zip(self.ids, ids, strict=False)]
        return next((i for i, same in enumerate(equal) if not same), len(equal))

    def discard(self):
        self.ids, self.discarded = [], self.discarded + 1


def test_a_job_gets_the_seat_that_holds_most_of_its_prompt_or_the_oldest():
    models = [FakeModel([1, 2]), FakeModel([1, 2, 3]), FakeModel([9])]
    seats = Seats(models)
    first = seats.take(FakeJob([1, 2, 3, 4], 10))
    assert first.model is models[1]
    assert seats.take(FakeJob([1, 2, 3, 4], 10)).model is models[0]
    assert seats.take(FakeJob([7], 10)).model is models[2]
    assert seats.take(FakeJob([7], 10)) is None
    seats.release(first)
    assert seats.take(FakeJob([7], 10)) is first and seats.latest is first


def test_idle_caches_make_room_and_running_ones_do_not():
    models = [FakeModel(), FakeModel(), FakeModel()]
    seats = Seats(models, room=100)
    idle, busy = seats.take(FakeJob([1], 40)), seats.take(FakeJob([2], 50))
    seats.release(idle)
    assert seats.take(FakeJob([3], 60)) is None, "50 are in use"
    assert idle.model.discarded and not busy.model.discarded
    third = seats.take(FakeJob([3], 50))
    assert third is not None and sum(seat.reserved for seat in seats.all) == 100
    seats.release(busy)
    seats.release(third)
    large = seats.take(FakeJob([4], 100))
    assert large is not None and sum(seat.reserved for seat in seats.all) == 100


def test_the_budget_holds_for_all_jobs_in_flight(make_parallel):
    probe = make_parallel(1)
    probe.generate([5, 6], max_new_tokens=16)
    need = probe._worker.seats.all[0].reserved
    engine = make_parallel(3, memory_budget=2 * need)
    seen, lock = [], threading.Lock()

    def on_event(event):
        with lock:
            seen.append(sum(seat.reserved for seat in engine._worker.seats.all))

    jobs = [engine.submit([5, 6 + i], max_new_tokens=16, on_event=on_event) for i in range(6)]
    assert all(job.result(30).new_tokens == 16 for job in jobs)
    assert max(seen) == 2 * need


def test_real_bundles_keep_a_conversation_in_each_seat(bundles):
    from dlm_edge.runtime import Engine

    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 200, 60).tolist() for _ in range(2)]
    with (
        Engine.open(bundles["sdar"][1], threads=1, parallel=2) as engine,
        Engine.open(bundles["sdar"][1], threads=1) as alone,
    ):
        wanted = [alone.generate(p, max_new_tokens=24).token_ids for p in prompts]
        jobs = [engine.submit(p, max_new_tokens=24) for p in prompts]
        assert [job.result(60).token_ids for job in jobs] == wanted
        longer = [p + ids for p, ids in zip(prompts, wanted, strict=True)]
        reused = [engine.generate(p, max_new_tokens=8).reused_tokens for p in reversed(longer)]
        assert min(reused) >= 56
