"""What the runtime may not need: it goes into desktop applications."""

import subprocess
import sys
from pathlib import Path

FORBIDDEN = ("torch", "transformers", "onnx", "huggingface_hub", "click", "rich", "safetensors", "triton", "scipy")
SCRIPT = """
import sys
import dlm_edge.runtime, dlm_edge.runtime.session, dlm_edge.runtime.ort_step_model, dlm_edge.kernels
dlm_edge.runtime.session.load_onnxruntime()
import tokenizers
print(*sorted(set(sys.argv[1:]) & set(sys.modules)))
"""


def test_nothing_heavy_is_loaded():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *FORBIDDEN],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == ""


def test_import_does_not_load_onnxruntime():
    """So that a broken installation shows as a coded error when an engine opens, and not as a traceback."""
    script = "import sys, dlm_edge.runtime; print('onnxruntime' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "False"
