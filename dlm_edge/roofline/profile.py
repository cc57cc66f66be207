"""ONNX Runtime's own profile of a session, run by run: seconds inside of it, and of each node.

The file is a list of events with a name, a begin and a duration in microseconds. An event "model_run" spans the nodes of
one call of `run`, whose names end in _kernel_time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dlm_edge.errors import JobError
from dlm_edge.roofline.node_kinds import Kind, kind_of

RUN, NODE = "model_run", "_kernel_time"
MICROSECOND = 1e-6


class Event(msgspec.Struct):
    name: str
    ts: int
    dur: int = 0
    args: dict[str, Any] = {}


@dataclass(slots=True)
class RunProfile:
    """`seconds` inside of ONNX Runtime; of its nodes by kind, and of linear ones by role."""

    seconds: float
    kinds: dict[Kind, float] = field(default_factory=lambda: defaultdict(float))
    roles: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    unknown: set[str] = field(default_factory=set)

    @property
    def node_seconds(self) -> float:
        return sum(self.kinds.values())


def end_profile(session: Any, *, native_operators: bool) -> list[RunProfile]:
    """End the session's profiling, read its file and delete it; one entry for each run so far. Raises E-ORT."""
    path = Path(session.end_profiling())
    try:
        events = msgspec.json.decode(path.read_bytes(), type=list[Event])
    except (OSError, msgspec.DecodeError) as error:
        hint = "run `dlm-edge bench --no-roofline`"
        raise JobError("E-ORT", f"ONNX Runtime's profile cannot be read: {error}", hint) from error
    finally:
        path.unlink(missing_ok=True)
    return profiles(events, native_operators=native_operators)


def profiles(events: list[Event], *, native_operators: bool) -> list[RunProfile]:
    events = sorted(events, key=lambda event: event.ts)
    runs = [event for event in events if event.name == RUN]
    found = [RunProfile(event.dur * MICROSECOND) for event in runs]
    at = 0
    for event in events:
        if not event.name.endswith(NODE):
            continue
        while at < len(runs) and event.ts >= runs[at].ts + runs[at].dur:
            at += 1
        if at == len(runs) or event.ts < runs[at].ts:
            continue  # constants, folded when the session was opened
        name = event.name.removesuffix(NODE)
        node = kind_of(name, event.args.get("op_name", ""), native_operators=native_operators)
        found[at].kinds[node.kind] += event.dur * MICROSECOND
        if node.role:
            found[at].roles[node.role] += event.dur * MICROSECOND
        if node.kind == "other":
            found[at].unknown.add(name)
    return found
