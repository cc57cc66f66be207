#!/bin/sh
# Unpack ONNX Runtime's official C headers (MIT) from Debian's libonnxruntime-dev into a folder, for
# tests/kernels/test_ort_abi.py. The system's package sources and state stay as they are.
#
#     tools/fetch_ort_headers.sh build/ort_headers [trixie]
#     DLM_EDGE_ORT_HEADERS=build/ort_headers python -m pytest tests/kernels/test_ort_abi.py
set -eu
target=${1:?usage: tools/fetch_ort_headers.sh FOLDER [DEBIAN-SUITE]}
suite=${2:-trixie}
mkdir -p "$target"
target=$(cd "$target" && pwd)
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
mirror=$(apt-get indextargets --format '$(REPO_URI)' | sort -u | head -n 1) # the one this system uses already
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:?no package mirror is configured} $suite main" \
  > "$apt/sources.list"
set -- -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts="$apt/parts" \
  -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root
apt-get "$@" -qq update
(cd "$apt" && apt-get "$@" -qq download libonnxruntime-dev)
dpkg-deb -x "$apt"/libonnxruntime-dev_*.deb "$target"
find "$target" -name onnxruntime_c_api.h
