"""dlm-edge: quantize, export and run diffusion language models."""

from pathlib import Path

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "quant").is_dir():
    __path__.append(str(_checkout))  # a source checkout keeps quant/, export/, ... beside this folder
