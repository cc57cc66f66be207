"""How fast the CPU profiles are, and what they cost: layers, whole passes, requests, one step, and quality.

    python benchmarks/cpu_speed.py --folder /tmp/cpu_speed --json cpu_speed.json
    python benchmarks/cpu_speed.py --json cpu_speed.json --tables

linear   QLinear against ONNX Runtime's MatMulNBits and its own integer product
forward  a pass over a whole text without a cache against llama.cpp's, which is its step of diffusion decoding
tokens   requests with a cache against steps over the whole text, of llama.cpp and our own
step     a step of one block against the measured peaks of the machine
quality  of every profile on the reference models

Models have random weights and the shapes of Dream and LLaDA; they are made once, in --folder. llama.cpp is measured in
turns with ours where --peer-python names an environment that has llama-cpp-python (benchmarks/peers/llama_cpp_peer.py); its
published times, scaled by the int8 peak of this machine, stand beside it anyway. Each row is written when it is finished,
with the peaks of the machine around it: a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime
from cpu import forward, linear, profile_quality, step, tables, tokens
from cpu.models import MODELS
from cpu.peer import PeerPlace
from cpu.plan import Plan
from cpu.rows import Rows

import dlm_edge
from dlm_edge import kernels
from dlm_edge.machine import processor

SECTIONS = ("linear", "forward", "tokens", "step", "quality")
DEFAULT_MODELS = ("dream-0.5b", "llada-0.8b", "dream-1.5b")
STEP_MODELS = ("dream-1.5b",)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def about() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "system": platform.platform(),
        "simd": kernels.simd(),
        "versions": {
            "dlm-edge": dlm_edge.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }


def run(args: argparse.Namespace, rows: Rows) -> None:
    args.folder.mkdir(parents=True, exist_ok=True)
    peer = PeerPlace(args.peer_python, args.peer_models or args.folder / "gguf") if args.peer_python else None
    plan = Plan(
        folder=args.folder, threads=tuple(args.threads), models=tuple(args.models), positions=tuple(args.positions),
        prompts=tuple(args.prompts), rounds=args.rounds, peer=peer,
    )  # fmt: skip
    for section in args.section:
        say(f"section {section}")
        if section == "linear":
            linear.run(rows, args.threads, args.shapes, say)
        elif section == "forward":
            forward.run(rows, plan, say)
        elif section == "tokens":
            tokens.run(rows, plan, say)
        elif section == "step":
            step.run(rows, plan, [name for name in args.models if args.all_steps or name in STEP_MODELS], say)
        else:
            questions = profile_quality.Questions(args.samples, args.flip_prompts)
            profile_quality.run(rows, args.folder, questions, say)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="rows are added to this file")
    parser.add_argument("--tables", action="store_true", help="measure nothing, print what the file has")
    parser.add_argument("--folder", type=Path, help="of models and bundles, some GB; nothing finished in it is removed")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(DEFAULT_MODELS))
    parser.add_argument("--shapes", nargs="+", default=list(linear.SHAPES), help="of linear: in x out")
    parser.add_argument("--positions", type=int, nargs="+", default=[192, 1152], help="of forward")
    parser.add_argument("--prompts", type=int, nargs="+", default=list(tokens.PROMPTS), help="of tokens and step")
    parser.add_argument("--rounds", type=int, default=5, help="of forward and tokens; of long texts a third of it")
    parser.add_argument(
        "--bearable",
        type=float,
        default=float("inf"),
        help="measure rows of several threads again where other programs kept more cores than this busy",
    )
    parser.add_argument("--all-steps", action="store_true", help="step: of all models, not of the largest alone")
    parser.add_argument("--samples", type=int, default=400, help="of quality, for each task")
    parser.add_argument("--flip-prompts", type=int, default=1000, help="of quality")
    parser.add_argument("--peer-python", type=Path, help="python of an environment with llama-cpp-python")
    parser.add_argument("--peer-models", type=Path, help="folder of the peer's model files (FOLDER/gguf)")
    args = parser.parse_args()
    rows = Rows(args.json, about(), ("machine", "simd"), args.bearable)
    if not args.tables:
        if args.folder is None:
            parser.error("--folder is missing: where models and bundles go")
        run(args, rows)
    print(tables.markdown(rows.content))


if __name__ == "__main__":
    main()
