"""Triton kernels run in Triton's interpreter in this process: it decides when it is imported, by whomever."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
