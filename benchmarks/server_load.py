"""Load on the server: good clients among ones that leave, stop reading, send rubbish, or have no key.

    python benchmarks/server_load.py reference --seconds 120

Checks while it runs that every complete answer is the engine's own for its prompt and seed, that no status is 5xx but 503, that
bad bodies and wrong keys are refused, and how long the liveness check takes; at the end, how soon the engine is idle once the
last clients have left in the middle of their answers. Exit code 1 where one of these fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from dlm_edge.artifacts import resolve_bundle
from dlm_edge.cli.output import table
from dlm_edge.runtime import Engine

CLIENTS, N_PROMPTS, NEW_TOKENS = 16, 24, 48
PLAN = {"good": 10, "stream": 10, "leave": 4, "stall": 1, "bad-body": 3, "wrong-key": 2}  # shares of the requests
BAD_BODIES = (
    b"{",
    b"[" * 500,
    b'{"a":1,"a":2}',
    b'{"messages":[]}',
    b'{"messages":[{"role":"x","content":"y"}]}',
    b"\xff",
)
LIVENESS_P99_MS, IDLE_EXTRA_MS = 100.0, 250.0
PROBE_S = 0.05
STALL_S = 2.0
QUEUE, LEAVERS = 8, 8  # fewer places than clients, so that some are told to come back


@dataclass
class Load:
    """What all clients saw."""

    url: str
    keys: list[str]
    requests: list[dict[str, Any]]
    expected: list[str]
    ends: float
    seen: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0

    async def client(self, number: int) -> None:
        rng = random.Random(number)
        headers = {"authorization": f"Bearer {self.keys[number]}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120, trust_env=False) as http:
            while time.monotonic() < self.ends:
                kind = rng.choices(list(PLAN), list(PLAN.values()))[0]
                try:
                    await getattr(self, kind.replace("-", "_"))(http, rng)
                except httpx.HTTPError as error:
                    self.wrong.append(f"{kind}: {type(error).__name__} {error}")
                self.seen[kind] += 1

    async def good(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        index = rng.randrange(N_PROMPTS)
        answer = await http.post("/v1/chat/completions", json=self.requests[index])
        if self.is_served(answer.status_code):
            body = answer.json()
            self.check(index, body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"])
        else:
            await asyncio.sleep(0.1)

    async def stream(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        index, text, is_complete, tokens = rng.randrange(N_PROMPTS), "", False, 0
        body = self.requests[index] | {"stream": True, "stream_options": {"include_usage": True}}
        if rng.random() < 0.5:
            body |= {"dlm": {"canvas": True}}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if not self.is_served(answer.status_code):
                await asyncio.sleep(0.1)
                return
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line == "data: [DONE]":
                    is_complete = True
                elif line.startswith("data: "):
                    value = json.loads(line[6:])
                    if "error" in value:
                        self.wrong.append(f"stream: {value['error']}")
                    elif not name:
                        text += "".join(choice["delta"].get("content") or "" for choice in value["choices"])
                        tokens = (value.get("usage") or {}).get("completion_tokens", 0)
                    name = ""
        if is_complete:
            self.check(index, text, tokens)
        else:
            self.wrong.append("stream: it ended without [DONE]")

    async def leave(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """Any time between the first byte of the request and the middle of the answer."""
        body = self.requests[rng.randrange(N_PROMPTS)] | {"stream": rng.random() < 0.7}
        with suppress(TimeoutError):
            async with asyncio.timeout(rng.choice([0.001, 0.01, 0.05, 0.2])):
                await http.post("/v1/chat/completions", json=body)

    async def stall(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        body = self.requests[rng.randrange(N_PROMPTS)] | {"stream": True, "dlm": {"canvas": True}}
        async with http.stream("POST", "/v1/chat/completions", json=body):
            await asyncio.sleep(min(STALL_S, max(self.ends - time.monotonic(), 0)))

    async def bad_body(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        kind = {"content-type": rng.choice(["application/json", "application/json", "text/plain"])}
        answer = await http.post("/v1/chat/completions", content=rng.choice(BAD_BODIES), headers=kind)
        self.must_be(answer.status_code, (400, 415, 429, 503))

    async def wrong_key(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        headers = {"authorization": f"Bearer {secrets.token_urlsafe(24)}"}
        path = rng.choice(["/v1/models", "/v1/chat/completions", "/metrics", "/nothing"])
        answer = await http.request(rng.choice(["GET", "POST"]), path, headers=headers, json={})
        self.must_be(answer.status_code, (401,))

    def is_served(self, status: int) -> bool:
        self.must_be(status, (200, 429, 503))
        return status == 200

    def must_be(self, status: int, allowed: tuple[int, ...]) -> None:
        self.statuses[status] += 1
        if status not in allowed:
            self.wrong.append(f"status {status}")

    def check(self, index: int, text: str, tokens: int) -> None:
        self.tokens += tokens
        if text != self.expected[index]:
            self.wrong.append(f"prompt {index}: another text than the engine's")

    async def last_leave(self) -> tuple[float, float]:
        """All clients leave in the middle of an answer: (ms until nothing runs, ms of a step)."""
        http = httpx.AsyncClient(
            base_url=self.url, headers={"authorization": f"Bearer {self.keys[-1]}"}, trust_env=False
        )
        long = self.requests[0] | {
            "max_tokens": 200,
            "stream": True,
            "dlm": {"sampler": "static", "stop_at_eos": False},
        }
        clients = [
            httpx.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {key}"}, trust_env=False)
            for key in self.keys[:LEAVERS]
        ]
        before = await self.metrics(http)
        tasks = [
            asyncio.ensure_future(client.post("/v1/chat/completions", json=long, timeout=60)) for client in clients
        ]
        while (await self.metrics(http))["dlm_edge_requests_in_flight"] < len(clients):
            if any(task.done() for task in tasks):
                break
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            await client.aclose()
        began = time.perf_counter()
        while (after := await self.metrics(http))["dlm_edge_requests_in_flight"] or after["dlm_edge_jobs_running"]:
            pass
        idle_ms = 1000 * (time.perf_counter() - began)
        await http.aclose()
        passes = after["dlm_edge_forward_passes_total"]
        step_ms = 1000 * after["dlm_edge_generation_seconds_total"] / max(passes, 1)
        assert after["dlm_edge_jobs_queued"] >= 0 and passes >= before["dlm_edge_forward_passes_total"]
        return idle_ms, step_ms

    async def metrics(self, http: httpx.AsyncClient) -> dict[str, float]:
        lines = (await http.get("/metrics")).text.splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }


def make_requests() -> list[dict[str, Any]]:
    rng = random.Random(0)
    words = "Ada Bob Cleo Dora Emil Finn Gina Hugo Iris Jack Kim Leo Mia".split()
    verbs = ("copy", "reverse", "sort", "shuffle")
    made = []
    for seed in range(N_PROMPTS):
        prompt = f"{rng.choice(verbs)}: {' '.join(rng.sample(words, 8))} =>"
        request: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": NEW_TOKENS}
        made.append(request | ({"temperature": 0.8, "seed": seed} if seed % 2 else {}))
    return made


def engine_texts(bundle: Path, requests: list[dict[str, Any]]) -> list[str]:
    with Engine.open(bundle, threads=1) as engine:
        texts = []
        for request in requests:
            given = {"max_new_tokens" if k == "max_tokens" else k: v for k, v in request.items() if k != "messages"}
            texts.append(engine.generate(request["messages"], **given).text)
        return texts


async def run(load: Load) -> tuple[float, float]:
    await asyncio.gather(*(load.client(number) for number in range(CLIENTS)))
    return await load.last_leave()


def probe(url: str, seconds: float) -> None:
    """Liveness from a process of its own, so that the clients' work is not measured; prints milliseconds as JSON."""
    taken, ends = [], time.monotonic() + seconds
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        while time.monotonic() < ends:
            began = time.perf_counter()
            http.get("/health").raise_for_status()
            taken.append(1000 * (time.perf_counter() - began))
            time.sleep(PROBE_S)
    print(json.dumps(taken))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", help="a bundle, a checkpoint, or reference")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--probe", action="store_true", help="BUNDLE is the address of a server: measure its liveness only."
    )
    asked = parser.parse_args()
    if asked.probe:
        probe(asked.bundle, asked.seconds)
        return 0
    bundle, requests = resolve_bundle(asked.bundle), make_requests()
    expected = engine_texts(bundle, requests)
    keys = [secrets.token_urlsafe(24) for _ in range(CLIENTS + 1)]
    with tempfile.TemporaryDirectory() as folder:
        key_file = Path(folder) / "keys"
        key_file.touch(mode=0o600)
        key_file.write_text("\n".join(keys))
        command = [sys.executable, "-m", "dlm_edge", "serve", str(bundle), "--port", "0", "--json", "--threads", "1"]
        command += ["--key-file", str(key_file), "--queue", str(QUEUE)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as server:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            probing = [sys.executable, __file__, url, "--probe", "--seconds", str(asked.seconds)]
            with subprocess.Popen(probing, stdout=subprocess.PIPE, text=True) as probe_process:
                load = Load(url, keys, requests, expected, time.monotonic() + asked.seconds)
                idle_ms, step_ms = asyncio.run(run(load))
                liveness_ms = json.loads(probe_process.communicate()[0])
            server.terminate()
            code = server.wait(30)
    return report(load, asked.seconds, liveness_ms, idle_ms, step_ms, code, as_json=asked.json)


def report(
    load: Load, seconds: float, liveness_ms: list[float], idle_ms: float, step_ms: float, code: int, *, as_json: bool
) -> int:
    ordered = sorted(liveness_ms)
    p99 = ordered[int(0.99 * (len(ordered) - 1))]
    found = {
        "seconds": seconds,
        "requests": dict(load.seen),
        "statuses": {str(k): v for k, v in sorted(load.statuses.items())},
        "tokens": load.tokens,
        "wrong": len(load.wrong),
        "liveness_ms": {"p50": ordered[len(ordered) // 2], "p99": p99, "max": ordered[-1], "n": len(ordered)},
        "idle_after_last_disconnect_ms": idle_ms,
        "mean_pass_ms": step_ms,
        "server_exit_code": code,
    }
    ok = not load.wrong and p99 <= LIVENESS_P99_MS and idle_ms <= step_ms + IDLE_EXTRA_MS and code == 0
    if as_json:
        print(json.dumps(found | {"ok": ok, "first_wrong": load.wrong[:5]}))
    else:
        rows = [["", ""], *([name, show(value)] for name, value in found.items())]
        print(table(rows))
        print("\n".join(load.wrong[:10]) or "no wrong answer, no 5xx but 503")
        print("ok" if ok else "FAILED")
    return 0 if ok else 1


def show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {show(each)}" for name, each in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
