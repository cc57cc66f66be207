#!/bin/sh
# The native operators under the address and undefined-behaviour sanitizers: a fuzz of damaged calls, then the kernel
# tests on a sanitized library, in a copy of the tree. Ends with an error at the first report of a sanitizer.
#
#   tools/sanitize_kernels.sh [CALLS]     PYTHON and CXX name the interpreter and a g++ or clang++
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
calls=${1:-3000}
python=${PYTHON:-python3}
cxx=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sanitize="-fsanitize=address,undefined -fno-sanitize-recover=all -g -fno-omit-frame-pointer"

mkdir "$work/tree"
cd "$root"
cp -r pyproject.toml setup.py README.md LICENSE dlm_edge quant export runtime kernels tests tools "$work/tree"
rm -f "$work"/tree/kernels/*.so
cd "$work/tree"
# -O1 comes after setup.py's -O3: reports then show the lines that they mean.
CXX="$cxx $sanitize" CXXFLAGS="-O1 -Werror" DLM_EDGE_NATIVE=1 "$python" setup.py -q build_ext --inplace --build-temp "$work/objects"

$cxx $sanitize -std=c++17 -O1 -Wall -Wextra tests/kernels/fuzz/*.cpp "$work"/objects/*.o -o "$work/fuzz_operators"
for seed in 1 2; do "$work/fuzz_operators" "$calls" $seed; done

# Leaks: the interpreter itself has some. The link order of a preloaded sanitizer is checked by hand: it is first here.
runtimes=$($cxx -print-file-name=libasan.so):$($cxx -print-file-name=libubsan.so)
ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 LD_PRELOAD=$runtimes PYTHONPATH=$work/tree \
  "$python" -m pytest -q -p no:cacheprovider tests/kernels -k "not triton and (native or prefix_block or library or dequantize_rows or select or pattern or quantize or (qlinear and not emulated))"
