"""The engine under asyncio: the loop stays free, and tasks that end take their jobs along."""

from __future__ import annotations

import asyncio
import time

import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime import AsyncEngine, Finished, Text
from tests.runtime.test_engine import GatedModel


def run(make_engine, body, **parts):
    async def whole():
        async with AsyncEngine(make_engine(**parts)) as engine:
            return await asyncio.wait_for(body(engine), 30)

    return asyncio.run(whole())


def test_results_are_those_of_the_engine(make_engine):
    wanted = [make_engine().generate(f"number {i}", max_new_tokens=20).token_ids for i in range(6)]

    async def body(engine):
        return await asyncio.gather(*(engine.generate(f"number {i}", max_new_tokens=20) for i in range(6)))

    assert [result.token_ids for result in run(make_engine, body)] == wanted


def test_a_stream_is_complete(make_engine):
    async def body(engine):
        return [event async for event in engine.stream("some words", max_new_tokens=40)]

    events = run(make_engine, body)
    assert isinstance(events[-1], Finished)
    assert "".join(e.text for e in events if isinstance(e, Text)) == events[-1].result.text


def test_the_loop_runs_while_the_model_works(make_engine):
    model = GatedModel()

    async def body(engine):
        task = asyncio.ensure_future(engine.generate("some words", max_new_tokens=8))
        while not model.waiting.is_set():
            await asyncio.sleep(0.001)
        began = time.perf_counter()
        await asyncio.sleep(0.01)
        assert time.perf_counter() - began < 5 and not task.done()
        model.gate.set()
        return (await task).new_tokens

    assert run(make_engine, body, model=model) == 8


@pytest.mark.parametrize("way", ["cancel", "leave"])
def test_a_task_that_ends_cancels_its_job(make_engine, way):
    model = GatedModel(free=10)

    async def read(engine):
        async for event in engine.stream("some words", raw=True, max_new_tokens=200, sampler="static"):
            if way == "leave" and isinstance(event, Text):
                return

    async def body(engine):
        if way == "leave":
            model.gate.set()
        task = asyncio.ensure_future(read(engine))
        if way == "cancel":
            while not model.waiting.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task
        while engine.engine.stats().running:
            await asyncio.sleep(0.001)
        model.gate.set()
        return (await engine.generate("some words", max_new_tokens=8)).new_tokens

    assert run(make_engine, body, model=model) == 8


def test_a_task_cancelled_while_it_submits_leaves_nothing_running(make_engine, monkeypatch):
    async def body(engine):
        submit = engine.engine.submit

        def slow(*args, **options):
            time.sleep(0.2)
            return submit(*args, **options)

        monkeypatch.setattr(engine.engine, "submit", slow)
        task = asyncio.ensure_future(engine.generate("some words", max_new_tokens=400))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.3)
        while engine.engine.stats().running:
            await asyncio.sleep(0.001)
        return True

    assert run(make_engine, body)


def test_errors_are_those_of_the_engine(make_engine):
    async def body(engine):
        with pytest.raises(UsageProblem, match="no setting"):
            await engine.generate("x", nonsense=1)
        await engine.close()
        with pytest.raises(UsageProblem, match="closed"):
            await engine.generate("x")

    run(make_engine, body)
