#!/usr/bin/env bash
# Build the wheel, look into it, install it into a fresh environment, and use it from another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

.venv/bin/python -m build --outdir "$work/dist" . > "$work/build.log" 2>&1 || { tail -40 "$work/build.log"; exit 1; }
wheel=$(ls "$work"/dist/*.whl)
case "$wheel" in *py3-none-*) ;; *) echo "unexpected wheel tag: $wheel"; exit 1 ;; esac
.venv/bin/python - "$wheel" <<'PY'
import sys, zipfile
names = zipfile.ZipFile(sys.argv[1]).namelist()
plug_in = "optimum/commands/register/register_dlm_edge.py"  # where optimum-cli looks for sub-commands
strangers = [n for n in names if not n.startswith(("dlm_edge/", "dlm_edge-")) and n != plug_in]
assert not strangers, f"the wheel holds more than dlm_edge/ and the plug-in: {strangers[:5]}"
assert plug_in in names, "the plug-in for optimum-cli is missing"
assert any(n.endswith("libdlm_edge_ops.so") for n in names), "no native library in the wheel"
assert not any(n.endswith((".cpp", ".h")) for n in names), "C++ sources in the wheel"
PY
python3=$(readlink -f .venv/bin/python)
"$python3" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt "$wheel[cpu,cli,quant,export]"
cd "$work"
"$work/venv/bin/python" -c '
import importlib.util
for name in ("quant", "export", "runtime", "kernels"):
    assert importlib.util.find_spec(name) is None, name
'
"$work/venv/bin/dlm-edge" doctor
"$work/venv/bin/dlm-edge" export reference -o "$work/bundle"
"$work/venv/bin/dlm-edge" generate "$work/bundle" -p "copy: Ada Bob Cleo =>"
