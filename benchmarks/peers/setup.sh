#!/bin/sh
# Install the peer packages that quantization_quality.py compares with, in the versions that were measured:
#
#     sh benchmarks/peers/setup.sh FOLDER
#
# makes FOLDER/gptqmodel and FOLDER/others. They are two because gptqmodel and llm-compressor ask for different
# versions of numpy and transformers. Everything runs on the CPU; TORCH_INDEX=https://download.pytorch.org/whl/cpu
# avoids the download of CUDA libraries where PyPI's torch brings them along.
set -eu
folder=${1:?usage: setup.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
for name in others gptqmodel; do
    "${PYTHON:-python3}" -m venv "$folder/$name"
    # gptqmodel looks for torch while it is built, so torch comes first.
    "$folder/$name/bin/python" -m pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
    "$folder/$name/bin/python" -m pip install --quiet -r "$here/requirements-$name.txt"
    "$folder/$name/bin/python" -m pip freeze > "$folder/$name/installed.txt"
done
