"""Which model state a job gets: one seat for each job in flight, each with the caches of one sequence.

All seats share the session and its weights, and those of the guide where there is one. A seat keeps its caches after a job, so that a later one with the same
beginning need not compute it again; where memory is limited, seats that nobody uses give theirs up first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlm_edge.runtime.guide import GuideModel
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.sequence_memory import NO_IDS
from dlm_edge.runtime.step_model import StepModel


@dataclass(eq=False, slots=True)
class Seat:
    model: StepModel
    guide: GuideModel | None = None
    reserved: int = 0  # bytes of caches and scores that its largest job since the last discard took
    used_at: int = 0
    is_taken: bool = False

    def terminate(self) -> None:
        """From any thread."""
        self.model.terminate()
        if self.guide is not None:
            self.guide.model.terminate()

    def forget(self) -> None:
        """Let the next job compute its whole prompt."""
        self.model.keep(NO_IDS, 1)
        if self.guide is not None:
            self.guide.model.keep(NO_IDS, 1)

    def discard(self) -> None:
        self.model.discard()
        if self.guide is not None:
            self.guide.model.discard()
        self.reserved = 0


class Seats:
    """Belongs to the worker thread. `room`: bytes for caches and scores of all seats together, None for no limit."""

    def __init__(self, models: Sequence[StepModel], room: int | None = None, guides: Sequence[GuideModel] = ()) -> None:
        """`guides`: one for each of the models, or none at all."""
        given: Sequence[GuideModel | None] = guides or [None] * len(models)
        self.all = [Seat(model, guide) for model, guide in zip(models, given, strict=True)]
        self.room = room
        self._clock = 0

    def take(self, job: Job) -> Seat | None:
        """The free seat that holds most of the prompt, else the one unused for longest; None: wait until a job ends."""
        free = sorted((seat for seat in self.all if not seat.is_taken), key=lambda seat: seat.used_at)
        if not free:
            return None
        seat = max(free, key=lambda each: each.model.stored_prefix(job.request.ids))
        if not self._make_room(seat, job, [other for other in free if other is not seat]):
            return None
        self._clock += 1
        seat.is_taken, seat.used_at, seat.reserved = True, self._clock, max(seat.reserved, job.request.working_bytes)
        return seat

    def _make_room(self, seat: Seat, job: Job, idle: Sequence[Seat]) -> bool:
        if self.room is None:
            return True
        for other in (*idle, seat):  # its own caches may be of a longer request than this one
            others = sum(each.reserved for each in self.all if each is not seat)
            if others + max(seat.reserved, job.request.working_bytes) <= self.room:
                return True
            other.discard()
        return sum(each.reserved for each in self.all) + job.request.working_bytes <= self.room or not self._has_jobs()

    def hold(self, seat: Seat, working: int) -> None:
        """Make `seat` begin anew with so many bytes, while no job is in flight."""
        seat.discard()
        seat.reserved = working
        for other in sorted(self.all, key=lambda each: each.used_at):
            if other is not seat and self.room is not None and sum(each.reserved for each in self.all) > self.room:
                other.discard()

    def forget(self) -> None:
        for seat in self.all:
            seat.forget()

    def _has_jobs(self) -> bool:
        return any(seat.is_taken for seat in self.all)

    @property
    def latest(self) -> Seat:
        """Of the job that began last."""
        return max(self.all, key=lambda seat: seat.used_at)

    def release(self, seat: Seat) -> None:
        seat.is_taken = False
