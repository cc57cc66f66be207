"""llama.cpp's step of diffusion decoding: the whole sequence forward, without a cache, logits of every position.

    FOLDER/llama_cpp/bin/python benchmarks/peers/llama_cpp_peer.py --shape dream-0.5b --quantization q4_0 \\
        --positions 192 1152 --threads 1 2 --models MODELS

prints one line of JSON per measurement. With --serve it opens the model and waits for requests on stdin, a line of JSON
each, such as {"positions": 192, "threads": 2, "logits": "all"}, and answers each with such a line: that is for a caller
that takes turns with it. The model is written into MODELS when it is not there; its weights are random.

A forward is what examples/diffusion does in every step before it samples: llama_set_causal_attn(false), one llama_decode
over all positions in one batch, llama_get_logits; parameters are the library's defaults. Models of these architectures
have no memory in llama.cpp, so that there is nothing to clear, and always give the logits of all positions. `"logits":
"none"` is the time until the final norm is there, read in a callback that then ends the forward: what is missing is the
output layer and the copy of its results.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf_model import FILE_TYPES, HEAD_TYPES, SHAPES, describe, model_file

GGML_LOG_LEVEL_ERROR = 4
Watch = Callable[[int, bool, int], bool]
Times = np.ndarray[Any, np.dtype[np.float64]]  # [2]: seconds, and seconds of CPU of all threads


def clocks() -> Times:
    return np.array([time.perf_counter(), time.process_time()])


class Context:
    """One llama_context for sequences of `positions` tokens, as examples/diffusion makes it."""

    def __init__(self, model: Any, positions: int, watch: Watch | None = None) -> None:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = positions
        if watch is not None:
            settings.cb_eval = self.callback = llama_cpp.ggml_backend_sched_eval_callback(watch)
        self.context = llama_cpp.llama_init_from_model(model, settings)
        if not self.context:
            raise SystemExit(f"llama.cpp could not make a context of {positions} positions")
        llama_cpp.llama_set_causal_attn(self.context, False)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(positions, 0, 1)
        self.batch.n_tokens = positions
        for i, token in enumerate(np.random.default_rng(1).integers(self.vocab_size, size=positions)):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = int(token), i, True
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0

    def run(self) -> Any:
        """Pointer to the logits [positions, vocab_size]; returns when they are there."""
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")
        return llama_cpp.llama_get_logits(self.context)


class WholeForward(Context):
    def warm_up(self) -> None:
        logits = np.ctypeslib.as_array(self.run(), (self.batch.n_tokens, self.vocab_size))
        if not np.isfinite(logits).all() or not (logits.max(axis=1) > logits.min(axis=1)).all():
            raise SystemExit("llama.cpp gave logits that are not finite, or all the same")

    def times(self) -> Times:
        started = clocks()
        self.run()
        return clocks() - started


class UntilFinalNorm(Context):
    """Ends each forward before the output layer."""

    def __init__(self, model: Any, positions: int) -> None:
        library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/*ggml-base*"))))
        self.name_of = library.ggml_get_name
        self.name_of.argtypes, self.name_of.restype = [ctypes.c_void_p], ctypes.c_char_p
        self.reached: Times | None = None
        super().__init__(model, positions, self.watch)

    def warm_up(self) -> None:
        self.times()

    def watch(self, tensor: int, asks: bool, _: int) -> bool:
        """Asked of every tensor whether it is wanted, and told of a wanted one that it is there; False stops."""
        if asks:
            return bool(self.name_of(tensor) == b"result_norm")
        self.reached = clocks()
        return False

    def times(self) -> Times:
        self.reached, started = None, clocks()
        self.run()
        if self.reached is None:
            raise SystemExit("llama.cpp's graph has no result_norm")
        return self.reached - started


class Peer:
    """A model held open; contexts are made, checked and warmed up at the first request that needs them."""

    def __init__(self, path: Path) -> None:
        settings = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model or not llama_cpp.llama_model_is_diffusion(self.model):
            raise SystemExit(f"llama.cpp does not take {path} as a diffusion model")
        self.contexts: dict[tuple[int, str], WholeForward | UntilFinalNorm] = {}
        self.warm: set[tuple[int, int, str]] = set()

    def forward(self, positions: int, threads: int, logits: str) -> Times:
        if (positions, logits) not in self.contexts:
            kind = {"all": WholeForward, "none": UntilFinalNorm}[logits]
            self.contexts[positions, logits] = kind(self.model, positions)
        context = self.contexts[positions, logits]
        llama_cpp.llama_set_n_threads(context.context, threads, threads)
        if (positions, threads, logits) not in self.warm:
            context.warm_up()
            self.warm.add((positions, threads, logits))
        return context.times()


def measurements(peer: Peer, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if args.serve:
        for line in sys.stdin:
            request = json.loads(line)
            forwards = request.pop("forwards", 1)
            yield {**request, **spread([peer.forward(**request) for _ in range(forwards)])}
        return
    for positions in args.positions:
        cases = [(threads, logits) for threads in args.threads for logits in args.logits]
        # Cases take turns, so that what else the machine does meets all of them.
        rounds = [[peer.forward(positions, *case) for case in cases] for _ in range(args.forwards)]
        for (threads, logits), runs in zip(cases, zip(*rounds, strict=True), strict=True):
            yield {"positions": positions, "threads": threads, "logits": logits, **spread(list(runs))}


def spread(times: list[Times]) -> dict[str, Any]:
    """Seconds, and CPU seconds: with one thread these tell what a busy machine would have done undisturbed."""
    columns = zip(("seconds", "cpu_seconds"), np.transpose(times).tolist(), strict=True)
    return {
        name: {"median": statistics.median(runs), "min": min(runs), "max": max(runs), "runs": runs}
        for name, runs in columns
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--quantization", choices=FILE_TYPES, default="q4_0")
    parser.add_argument("--head", choices=["default", *HEAD_TYPES], default="default", help="type of the output layer")
    parser.add_argument("--models", type=Path, required=True, help="folder of the model files")
    parser.add_argument("--positions", type=int, nargs="+", default=[192])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--logits", choices=["all", "none"], nargs="+", default=["all", "none"])
    parser.add_argument("--forwards", type=int, default=5, help="timed, after one that is not")
    parser.add_argument("--serve", action="store_true", help="answer requests from stdin")
    parser.add_argument("--log", action="store_true", help="all that llama.cpp says, on stderr")
    return parser.parse_args()


def main() -> None:
    args = parse()

    def say(level: int, text: bytes, _: int) -> None:
        if args.log or level == GGML_LOG_LEVEL_ERROR:
            print(text.decode(errors="replace"), end="", file=sys.stderr)

    callback = llama_cpp.llama_log_callback(say)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(None))
    llama_cpp.llama_backend_init()
    path = model_file(args.models, args.shape, args.quantization, args.head)
    about = {
        "package": f"llama-cpp-python {llama_cpp.__version__}",
        "system_info": llama_cpp.llama_print_system_info().decode(),
        "shape": args.shape,
        "n_parameters": SHAPES[args.shape].n_parameters,
        "quantization": args.quantization,
        **describe(path),
    }
    for measurement in measurements(Peer(path), args):
        print(json.dumps({**about, **measurement}), flush=True)


if __name__ == "__main__":
    main()
