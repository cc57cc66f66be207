"""How many requests for a generation may be in the house, in all and of one client. The others are told to come back."""

from __future__ import annotations

import math
from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from dlm_edge.server.gate import CLIENT
from dlm_edge.server.metrics import Metrics
from dlm_edge.server.options import ServerOptions
from dlm_edge.server.refusals import busy

MAX_RETRY_S = 60


class Admission:
    """Counts every POST from before its body is read until its answer has ended, so that nothing can slip through."""

    def __init__(self, app: ASGIApp, options: ServerOptions, metrics: Metrics, parallel: int) -> None:
        self.app, self.options, self.metrics, self.parallel = app, options, metrics, parallel
        self.by_client: Counter[tuple[int | None, str]] = Counter()

    @property
    def in_flight(self) -> int:
        return self.by_client.total()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        client = scope[CLIENT]
        if self.by_client[client] >= self.options.per_client:
            message = f"{self.options.per_client} requests of yours are in work"
            raise busy(429, message, "too_many_requests", self.retry_s())
        if self.in_flight >= self.parallel + self.options.queue:
            raise busy(503, f"{self.in_flight} requests are in work or wait", "queue_full", self.retry_s())
        self.by_client[client] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.by_client[client] -= 1
            if not self.by_client[client]:
                del self.by_client[client]

    def retry_s(self) -> int:
        """When a place may be free: what is in work, at the mean time of those that have ended."""
        rounds = self.in_flight / self.parallel
        return min(max(math.ceil(self.metrics.mean_seconds() * rounds), 1), MAX_RETRY_S)
