"""The operators as Triton kernels: attention over pages, page selection, and the launches that make an operator.

The definitions are kernels/select_pages/reference.py and kernels/prefix_block_attention/reference.py. The kernels run
three ways: compiled while a Python program runs (benchmarks), in Triton's interpreter on the CPU (tests), and compiled
ahead of time by tools/compile_kernels.py for the operator library, which needs neither Triton nor PyTorch.
"""
