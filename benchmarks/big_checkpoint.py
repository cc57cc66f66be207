"""Memory and time of `dlm-edge quantize` on a checkpoint of LLaDA-8B's shape with random weights, against its estimates.

    python benchmarks/big_checkpoint.py /tmp/big --blocks 2 --method gptq --calib-tokens 2048 --json

Every block has the real size (d_model 4096, 32 heads, feed-forward 12288, vocabulary 126464), only their number and,
with --width, their width are less. Peaks of memory are the kernel's; times are those of the processor (user and system)
beside those of the clock: with one thread the first say what an idle machine would take.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from dlm_edge.checkpoint.safetensors_writer import StoredTensor, write_safetensors
from dlm_edge.families import FAMILIES
from dlm_edge.families.roles import role_shapes
from dlm_edge.families.spec import Conventions, ModelSpec

HEAD_DIM, VOCABULARY, DEPTH = 128, 126464, 32
CHUNK_VALUES = 8 << 20
LINEARS = 7  # progress lines of a block
POLL_SECONDS = 0.05


def make_spec(width: int, blocks: int, vocabulary: int) -> ModelSpec:
    """LLaDA-8B with `width` instead of 4096; a small vocabulary has room for the reference model's tokens."""
    special = vocabulary - 383  # where LLaDA's end of text lies
    return ModelSpec(
        family="llada", architecture="LLaDAModelLM", vocab_size=vocabulary, embedding_rows=vocabulary,
        hidden_size=width, n_layers=blocks, n_heads=width // HEAD_DIM, n_kv_heads=width // HEAD_DIM,
        head_dim=HEAD_DIM, intermediate_size=3 * width, rope_theta=500000.0, norm_eps=1e-5, qkv_bias=False,
        qk_norm=False, tied_head=False, max_positions=4096,
        conventions=Conventions(
            mask_id=special + 255, logit_shift=0, attention="full", block_length=32, sub_block_length=32,
            grid_origin="prompt_end", first_token_rule="predicted", kv_commit_rule="approximate",
            stop_ids=(special,), eos_id=special, pad_id=special, bos_id=special - 1,
        ),
    )  # fmt: skip


def write_checkpoint(folder: Path, spec: ModelSpec, seed: int = 0) -> None:
    """In bfloat16, some rows at a time; the tokenizer is the reference model's."""
    family, generator = FAMILIES["llada"], torch.Generator().manual_seed(seed)
    assert family.to_config is not None

    def values(shape: tuple[int, ...], scale: float) -> Iterator[bytes]:
        rows = max(1, CHUNK_VALUES // shape[-1])
        for first in range(0, shape[0], rows):
            piece = torch.empty(min(rows, shape[0] - first), *shape[1:])
            piece = piece.fill_(1) if len(shape) == 1 else piece.normal_(0, scale, generator=generator)
            yield piece.bfloat16().view(torch.int16).numpy().tobytes()

    folder.mkdir(parents=True, exist_ok=True)
    tensors = [
        StoredTensor(
            family.tensor_name(role), "BF16", shape, values(shape, 0.05 if "embed" in role else shape[-1] ** -0.5)
        )
        for role, shape in role_shapes(spec).items()
    ]
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(family.to_config(spec)))
    tokenizer = files("dlm_edge") / "reference_models" / "reference" / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())


@dataclass
class Watched:
    """What was seen of a process: seconds since its start and of the processor at each line, peaks of memory between."""

    lines: list[tuple[str, float, float]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)  # bytes, up to each line; the last one up to the end
    output: str = ""


def watch(command: list[str]) -> Watched:
    """Run to the end; the processor time of children is not counted. Raises CalledProcessError with what was said."""
    seen, started = Watched(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0

    def read_lines() -> None:
        nonlocal peak
        assert process.stderr is not None
        for line in process.stderr:
            seen.lines.append((line.rstrip(), time.perf_counter() - started, processor_seconds(process.pid)))
            seen.peaks.append(peak)
            peak = 0

    def sample() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(POLL_SECONDS)

    threads = [threading.Thread(target=read_lines), threading.Thread(target=sample)]
    for thread in threads:
        thread.start()
    assert process.stdout is not None
    seen.output = process.stdout.read()
    for thread in threads:
        thread.join()
    seen.peaks.append(peak)
    if process.wait():
        said = "\n".join(line for line, *_ in seen.lines)
        raise subprocess.CalledProcessError(process.returncode, command, seen.output, said)
    return seen


def resident_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0  # it has ended
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:")), 0)


def processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(model: Path, out: Path, settings: list[str]) -> dict[str, Any]:
    """One row: the job's own estimate, then the job."""
    command = [sys.executable, "-m", "dlm_edge", "quantize", str(model), "-o", str(out), "--json", *settings]
    planned = json.loads(watch([*command, "--dry-run"]).output)
    seen = watch([*command, "--restart"])
    report = json.loads(seen.output)
    n_blocks = json.loads((model / "config.json").read_text())["n_layers"]
    begin = next(n for n, (line, *_) in enumerate(seen.lines) if line.startswith("quantize "))
    ends = [n for n, (line, *_) in enumerate(seen.lines) if f"/{n_blocks * LINEARS}  " in line][LINEARS - 1 :: LINEARS]
    assert len(ends) == n_blocks, [line for line, *_ in seen.lines]
    marks = [seen.lines[n][1:] for n in (begin, *ends)]
    wall, busy = ([round(b[i] - a[i], 1) for a, b in zip(marks, marks[1:], strict=False)] for i in (0, 1))
    later = busy[1:] or busy  # the first block's share includes embedding and head
    return {
        "blocks": n_blocks,
        "settings": settings,
        "peak_rss_bytes": report["peak_rss_bytes"],
        "estimated_bytes": planned["peak_rss_bytes"],
        "memory_ratio": round(planned["peak_rss_bytes"] / report["peak_rss_bytes"], 3),
        "peaks_until_block_ends": [max(seen.peaks[a + 1 : b + 1]) for a, b in zip((begin, *ends), ends, strict=False)],
        "peak_after_blocks": seen.peaks[-1],
        "wall_seconds_by_block": wall,
        "processor_seconds_by_block": busy,
        "seconds": round(report["seconds"], 1),
        "estimated_seconds": round(planned["seconds"], 1),
        "eta_lines": [seen.lines[n][0].partition("ETA ")[2].split(" s")[0] for n in ends],
        "extrapolated_seconds_32_blocks": round(busy[0] + (DEPTH - 1) * sum(later) / len(later)),
        "bits_per_weight": round(report["bits_per_weight"], 3),
        "quality": report["quality"],
    }


@dataclass(frozen=True)
class Request:
    blocks: int
    width: int
    vocabulary: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where checkpoint and result go; nothing in it is removed")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--width", type=int, default=4096, help="a multiple of 128")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    known, settings = parser.parse_known_args()
    settings = settings or ["--recipe", "w4", "--calib-tokens", "2048"]
    request = Request(known.blocks, known.width, known.vocabulary)
    model = known.folder / f"llada-{request.width}-{request.vocabulary}-{request.blocks}"
    if not (model / "tokenizer.json").is_file():
        write_checkpoint(model, make_spec(request.width, request.blocks, request.vocabulary))
    row = {
        **asdict(request),
        "threads": torch.get_num_threads(),
        **measure(model, known.folder / "quantized", settings),
    }
    if known.json:
        print(json.dumps(row, indent=1))
        return
    for key, value in row.items():
        print(f"{key:32}{value}")


if __name__ == "__main__":
    main()
