"""Native operators of dlm-edge for ONNX Runtime, their NumPy definitions and their bodies of standard operators."""

from dlm_edge.kernels.library import DOMAIN, OPERATOR_VERSION, library_path, register, set_simd, simd

__all__ = ["DOMAIN", "OPERATOR_VERSION", "library_path", "register", "set_simd", "simd"]
