"""dlm-edge as a backend of Hugging Face optimum; needs the extra `dlm-edge[optimum]`.

    config = dlm_edge.optimum.exporter_config("reference")
    DlmEdgeQuantizer.from_pretrained("reference").quantize("packed", bits=4)

`optimum-cli dlm-edge quantize|export` comes with the same extra.
"""

from dlm_edge.optimum.exporter import BACKEND, CONFIGS, exporter_config, register
from dlm_edge.optimum.quantizer import DlmEdgeQuantizer
from dlm_edge.optimum.step_config import StepConfig

__all__ = ["BACKEND", "CONFIGS", "DlmEdgeQuantizer", "StepConfig", "exporter_config", "register"]
