"""Compile the Triton kernels to device code, on a machine with or without a GPU.

    python tools/compile_kernels.py [--arch 86 ...] [--out kernels/cubins] [--jobs 2] [--only 'attend_*-d128']

Per architecture one folder: NAME.cubin, NAME.json with all that a launcher must know, and kernels.txt, the same in
the few columns that the operator library reads. Needs `pip install triton`; whoever runs the result needs neither
Triton nor PyTorch nor nvcc. An up-to-date folder (same sources, same Triton) is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter replaces the compiler
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # stated, because Triton's default changes between versions
os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # a third of the size, and paths of this machine

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
from triton.backends.compiler import GPUTarget  # type: ignore[import-not-found,import-untyped,unused-ignore]
from triton.compiler import ASTSource  # type: ignore[import-not-found,import-untyped,unused-ignore]

from dlm_edge.kernels.triton import variants

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "kernels" / "triton"
LARGEST_SHARED = 101376  # bytes that a block may have on sm_86, sm_89 and sm_120
# What cuLaunchKernel cannot express; the library launches with nothing else.
PLAIN_LAUNCH = {"num_ctas": 1, "launch_cooperative_grid": False, "launch_pdl": False, "launch_cluster": False}
SIZES = ("shared", "num_warps", "num_stages", "num_ctas", "global_scratch_size", "global_scratch_align",
         "profile_scratch_size", "profile_scratch_align")  # fmt: skip


def compile_variant(variant: variants.Variant, arch: int) -> tuple[dict[str, Any], bytes]:
    """Metadata and cubin. Raises ValueError when the result needs a launch that the library does not do."""
    signature = variant.signature()
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in variants.DIVISIBLE_BY_16
    }
    constants = {(list(signature).index(name),): value for name, value in variant.constants.items()}
    source = ASTSource(variant.kernel, signature, constexprs=constants, attrs=divisible)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    found = made.metadata
    odd = {key: getattr(found, key) for key, plain in PLAIN_LAUNCH.items() if getattr(found, key, plain) != plain}
    if found.shared > LARGEST_SHARED:
        odd["shared"] = found.shared
    if found.global_scratch_size or found.profile_scratch_size:
        odd["scratch"] = found.global_scratch_size + found.profile_scratch_size
    if odd:
        raise ValueError(f"{variant.name} on sm_{arch} needs a launch that is not supported: {odd}")
    metadata = {
        "name": variant.name,
        "function": found.name,
        "arch": arch,
        **{key: getattr(found, key) for key in SIZES},
        **PLAIN_LAUNCH,
        "arguments": [[name, kind] for name, kind in signature.items() if kind != "constexpr"],
        "trailing_arguments": ["global scratch", "profile scratch"],  # null pointers
        "constants": variant.constants,
        "divisible_by_16": [name for (i,) in divisible for name in [list(signature)[i]]],
        "grid": variant.grid(),
        "fp_fusion": True,
        "triton": triton.__version__,
        "sources": source_hash(),
    }
    return metadata, made.asm["cubin"]


def compile_folder(arch: int, out: Path, only: Sequence[str] = ("*",)) -> tuple[int, int]:
    """Number of kernels and bytes of `out`/sm_ARCH, written afresh unless it is up to date; `only` are name patterns."""
    folder = out / f"sm_{arch}"
    table = folder / "kernels.txt"
    header = f"# sm_{arch} triton {triton.__version__} sources {source_hash()} kernels {' '.join(only)}"
    if not (table.is_file() and table.read_text(encoding="utf-8").splitlines()[0] == header):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rows = [header, "# name function num_warps shared arguments"]
        for variant in filter(lambda v: any(fnmatch(v.name, pattern) for pattern in only), variants.variants()):
            metadata, cubin = compile_variant(variant, arch)
            (folder / f"{variant.name}.cubin").write_bytes(cubin)
            (folder / f"{variant.name}.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
            columns = [metadata["function"], metadata["num_warps"], metadata["shared"], len(metadata["arguments"])]
            rows.append(" ".join(map(str, [variant.name, *columns])))
        table.write_text("\n".join(rows) + "\n", encoding="utf-8")  # last: a stopped run is not up to date
    cubins = list(folder.glob("*.cubin"))
    return len(cubins), sum(f.stat().st_size for f in cubins)


def source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--arch", type=int, nargs="+", default=variants.ARCHITECTURES, help="compute capability, e.g. 86"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "kernels" / "cubins")
    parser.add_argument("--jobs", type=int, default=1, help="architectures compiled at the same time")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="of kernel names; for tests and experiments"
    )
    args = parser.parse_args()
    started = time.monotonic()
    compile_one = partial(compile_folder, out=args.out, only=args.only)
    with ProcessPoolExecutor(args.jobs) as pool:
        for arch, (count, size) in zip(args.arch, pool.map(compile_one, args.arch), strict=True):
            seconds = time.monotonic() - started
            print(f"sm_{arch}: {count} kernels, {size / 1e6:.2f} MB, after {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
