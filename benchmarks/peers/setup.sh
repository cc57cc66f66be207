#!/bin/sh
# Install the peer packages that benchmarks compare with, in the versions that were measured:
#
#     sh benchmarks/peers/setup.sh FOLDER [NAME ...]
#
# makes FOLDER/gptqmodel and FOLDER/others, for quantization_quality.py, and FOLDER/llama_cpp, for cpu_speed.py, or those
# that are named. gptqmodel and llm-compressor ask for different versions of numpy and transformers; llama.cpp is compiled
# here, for this processor, which takes a C++ compiler and some minutes. Everything runs on the CPU;
# TORCH_INDEX=https://download.pytorch.org/whl/cpu avoids the download of CUDA libraries where PyPI's torch brings them along.
set -eu
folder=${1:?usage: setup.sh FOLDER [NAME ...]}
shift
here=$(cd "$(dirname "$0")" && pwd)
for name in ${*:-others gptqmodel llama_cpp}; do
    "${PYTHON:-python3}" -m venv "$folder/$name"
    if [ "$name" = llama_cpp ]; then
        export CMAKE_ARGS="-DGGML_NATIVE=ON" PIP_NO_BINARY=llama-cpp-python
    else
        # gptqmodel looks for torch while it is built, so torch comes first.
        "$folder/$name/bin/python" -m pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
    fi
    "$folder/$name/bin/python" -m pip install --quiet -r "$here/requirements-$name.txt"
    "$folder/$name/bin/python" -m pip freeze > "$folder/$name/installed.txt"
done
