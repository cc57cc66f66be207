"""`export`: a checkpoint folder, quantized or not, becomes a bundle that the runtime opens."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx

import dlm_edge
from dlm_edge import files, kernels
from dlm_edge.bundle import MANIFEST_NAME, MANIFEST_SCHEMA, FileEntry, Manifest
from dlm_edge.cache_choice import BODY, DEFAULT_CACHE, parse_cache
from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.checkpoint.chat_template import read_chat_template
from dlm_edge.errors import ResourceError, UsageProblem
from dlm_edge.export.card import model_card
from dlm_edge.export.external_data import ExternalData, data_path
from dlm_edge.export.graph import StepGraph
from dlm_edge.export.measured_profile import NO_CHOICE, Choice, choose_profile
from dlm_edge.export.nodes import OPSET
from dlm_edge.export.profiles import AUTO, Precision, check_profile
from dlm_edge.export.verify import make_prompts, verify
from dlm_edge.files import free_bytes
from dlm_edge.journal import JOURNAL
from dlm_edge.memory import peak_rss_bytes
from dlm_edge.nearest import nearest
from dlm_edge.work_folder import WorkFolder

GRAPH_NAME = "model.onnx"
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "LICENSE.txt", "LICENSE.md")
TARGETS = ("cpu", "cuda")


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of `dlm-edge export --json`."""

    output: str
    profile: str  # empty for CUDA
    size_bytes: int
    opset: int
    operator_version: int
    nodes: list[dict[str, Any]]
    parity: dict[str, Any]
    seconds: float
    peak_rss_bytes: int


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    target: str = "cpu",
    profile: str = AUTO,
    cache: str = "kv",
    restart: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write the bundle `out`; nothing stands under that name before the graph agreed with the source model.

    `profile` of a CPU bundle is one of profiles.py; auto times those that fit the checkpoint on this machine.
    `cache` is a layout of runtime/layouts with an optional group, such as kv-int4,group=64; kv is that of the target.
    `restart` replaces an existing bundle. Raises E-EXISTS, E-PARITY, E-IO, E-PARAM for a profile that does not fit, and
    whatever the checkpoint raises.
    """
    started = time.perf_counter()
    if target not in TARGETS:
        raise UsageProblem("E-USAGE", f"target {target!r} is not known", nearest(target, TARGETS))
    say = progress or (lambda _: None)
    # A bundle without a usable tokenizer would fail only when somebody runs it.
    source, out = open_checkpoint(checkpoint, need_tokenizer=True), Path(out)
    if out.resolve() == source.path.resolve():  # with --restart the bundle would take the checkpoint's place
        raise UsageProblem("E-USAGE", f"{out} is the checkpoint itself", "choose another folder with -o")
    check_profile(profile, target, source)
    check_space(source, out)
    layout, group = parse_cache(cache, target, source.spec)
    prompts = make_prompts(source)
    # An export is minutes of copying: it is done anew, not resumed, so an unfinished one never stands in the way.
    fingerprint = {"job": "export", "source": str(source.path.resolve()), "version": dlm_edge.__version__}
    with WorkFolder.open(out, fingerprint, resume=False, restart=restart, discard_unfinished=True) as work:
        say(f"reading   {source.name}: {source.spec.family}, {source.spec.n_layers} layers")
        chosen = choose_profile(profile, source, say) if target == "cpu" else NO_CHOICE
        precision = Precision(BODY[target], chosen.kernel)
        nodes, notices = write_graph(source, work.path / GRAPH_NAME, precision, layout)
        for notice in notices:
            say(f"notice    {notice}")
        source.check_unchanged()
        say("checking  the graph against the source model")
        parity = verify(
            work.path / GRAPH_NAME,
            source,
            prompts,
            body=precision.body.name,
            int8_activations=any(node["accuracy_level"] == 4 or node["activations"] == "int8" for node in nodes),
            native=target == "cpu",
            cached=layout == DEFAULT_CACHE[target],  # others round what they store
        )
        copy_texts(source.path, work.path)
        files.write_file(work.path / "README.md", model_card(source, target, chosen.profile, parity))
        write_manifest(work.path, source, target, (layout, group), chosen, nodes, parity)
        size = sum(f.stat().st_size for f in work.path.iterdir() if f.name != JOURNAL)
        work.finish()
    return ExportReport(
        output=str(out),
        profile=chosen.profile,
        size_bytes=size,
        opset=OPSET,
        operator_version=kernels.OPERATOR_VERSION,
        nodes=nodes,
        parity=parity,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
    )


def write_graph(
    source: Checkpoint, path: Path, precision: Precision, layout: str = "kv-fp32"
) -> tuple[list[dict[str, Any]], list[str]]:
    """Stream weights into the data file, then write the graph; returns its packed weights, and notices for the user."""
    with files.replacing(data_path(path)) as file:
        step = StepGraph(source, ExternalData(file, data_path(path).name), precision, layout)
        model = step.build()
    files.write_file(path, model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
    return step.weights.quantized, step.weights.notices


def copy_texts(source: Path, folder: Path) -> None:
    """Tokenizer, licence and chat template; most checkpoints keep the template inside tokenizer_config.json."""
    for name in COPIED:
        if (source / name).is_file():
            files.write_file(folder / name, (source / name).read_bytes())
    template = read_chat_template(source)
    if template is not None and not (folder / "chat_template.jinja").is_file():
        files.write_file(folder / "chat_template.jinja", template)


def write_manifest(
    folder: Path,
    source: Checkpoint,
    target: str,
    cache: tuple[str, int],
    chosen: Choice,
    nodes: list[dict[str, Any]],
    parity: dict[str, Any],
) -> None:
    entries = tuple(
        FileEntry(name=p.name, size=p.stat().st_size, sha256=files.sha256_of(p))
        for p in sorted(folder.iterdir())
        if p.name not in (JOURNAL, MANIFEST_NAME)
    )
    record = source.record
    manifest = Manifest(
        schema=MANIFEST_SCHEMA,
        tool_version=dlm_edge.__version__,
        target=target,
        model=source.spec,
        operator_version=kernels.OPERATOR_VERSION,
        opset=OPSET,
        cache_layout=cache[0],
        cache_group=cache[1],
        profile=chosen.profile,
        quantization=None if record is None else msgspec.to_builtins(record),
        nodes=tuple(nodes),
        sampler_defaults={},
        parity=parity,
        measured=chosen.measured,
        files=entries,
    )
    files.write_file(folder / MANIFEST_NAME, msgspec.json.format(msgspec.json.encode(manifest), indent=2))


def check_space(source: Checkpoint, out: Path) -> None:
    """Float32 bundles are at most twice their float16 or bfloat16 source."""
    needed = 2 * sum(source.stored_bytes(role) for role in source.roles()) + (16 << 20)
    free = free_bytes(out.absolute().parent)
    if free < needed:
        message = f"{out} needs up to {needed >> 20} MiB, {free >> 20} MiB are free"
        raise ResourceError("E-IO", message, "free some space or choose another folder")
