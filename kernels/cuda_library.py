"""The CUDA flavour of the operator library: registering it with a session, and which devices it has code for.

The same file as the CPU's; the compiled kernels lie beside it in cubins/ (tools/compile_kernels.py, docs/gpu.md).
"""

from __future__ import annotations

from dlm_edge.kernels.library import SessionOptions, _load, library_path


def architectures() -> list[int]:
    """Compute capabilities with compiled kernels, 86 for 8.6; empty where none were built."""
    path = library_path()
    tables = path.parent.glob("cubins/sm_*/kernels.txt") if path else []
    return sorted(int(table.parent.name.removeprefix("sm_")) for table in tables)


def register_cuda(session_options: SessionOptions) -> bool:
    """Add the operators of the CUDA provider to a session; False without library or kernels: function bodies run then.

    Only for sessions whose first provider is CUDA, with models in float16. A device without code of its own is an
    error at the first run: compare `architectures` with it before. One session must not run on two threads at a time,
    because both would share the working memory of its stream.

    Raises EnvironmentProblem like `dlm_edge.kernels.register`.
    """
    path = library_path()
    if path is None or not architectures():
        return False
    library = _load(path)
    library.dlm_edge_choose_cuda(1)  # of this thread
    try:
        session_options.register_custom_ops_library(str(path))
    finally:
        library.dlm_edge_choose_cuda(0)
    return True
