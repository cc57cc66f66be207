"""The verbs of the command line, in the order of --help: where each is, and which extras it needs."""

from __future__ import annotations

VERBS = {  # verb: module that holds a click command named `command`
    "quantize": "dlm_edge.cli.quantize",
    "export": "dlm_edge.cli.export",
    "convert": "dlm_edge.cli.convert",
    "generate": "dlm_edge.cli.generate",
    "chat": "dlm_edge.cli.chat",
    "serve": "dlm_edge.cli.serve",
    "tune": "dlm_edge.cli.tune",
    "train-filter": "dlm_edge.cli.train_filter",
    "eval": "dlm_edge.cli.eval",
    "bench": "dlm_edge.cli.bench",
    "inspect": "dlm_edge.cli.inspect",
    "estimate": "dlm_edge.cli.estimate",
    "check": "dlm_edge.cli.check",
    "doctor": "dlm_edge.cli.doctor",
    "demo": "dlm_edge.cli.demo",
    "completion": "dlm_edge.cli.completion",
}

EXTRAS = {  # beside `cli`, and the onnxruntime of `cpu` or `cuda`
    "quantize": ("quant",),
    "export": ("export",),
    "serve": ("server",),
    "demo": ("quant", "export"),
}
