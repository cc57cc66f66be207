"""Write a trained reference model as a checkpoint folder in the Hugging Face layout.

    python tools/train_reference/publish.py build/reference --name reference --out dlm_edge/reference_models/reference

Reads weights.safetensors (float32, by role), tokenizer.json and train_log.jsonl of the run, and eval.json
where there is one. Weights are rounded to bfloat16.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tokenizer import EOS, MASK
from tokenizers import Tokenizer
from train import make_spec

from dlm_edge import files
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.families import FAMILIES
from dlm_edge.families.roles import role_shapes
from dlm_edge.families.spec import ModelSpec

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
KINDS = {"reference": "block", "reference-full": "full"}
CARD = """---
license: apache-2.0
library_name: dlm-edge
pipeline_tag: text-generation
---

# {name}

A {millions:.1f}M-parameter reference model trained by this project for its tests and benchmarks; nothing measured on it
says what an 8B model loses. {kind}

| | |
|---|---|
| layout | {architecture}: {layers} layers, width {hidden}, {heads} heads ({kv_heads} for keys and values), feed-forward {width} |
| attention | {attention}, blocks of {block} |
| vocabulary | {vocab} byte-level BPE entries; mask id {mask}, end of text {eos} |
| training | {training} |

Trained on two kinds of text: sources of the Python standard library (PSF licence, one file in twenty held out), and
synthetic tasks made from seeds by `dlm_edge/evaluation/tasks.py` (copy, reverse, sort, shuffle, brackets, JSON, long
copies, key-value retrieval). The training program is `tools/train_reference/`, its log `train_log.jsonl`.
Licence of the weights: Apache-2.0.

## Measured quality

{quality}

## Limits

It knows these tasks and what Python looks like; it cannot hold a conversation, and its texts are no code to run.
Prompts are the tasks' own (`copy: Ada Bob =>`); the chat template only joins the messages.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", choices=list(KINDS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", help="as given to train.py, where it was given")
    parser.add_argument("--block", type=int, default=16)
    args = parser.parse_args()
    kind = KINDS[args.name]
    n_ids = Tokenizer.from_file(str(args.run / "tokenizer.json")).get_vocab_size()
    publish(args.run, make_spec(kind, n_ids, args.block, args.shape or kind), args.name, args.out)


def publish(run: Path, spec: ModelSpec, name: str, out: Path) -> None:
    if out.exists():
        raise SystemExit(f"{out} exists already; remove it first")
    files.make_folder(out)
    weights = load_file(run / "weights.safetensors")
    write_weights(out, spec, weights)
    ids = spec.conventions
    files.write_json(out / "config.json", FAMILIES[spec.family].to_config(spec))
    special = {"eos_token": EOS, "pad_token": EOS, "mask_token": MASK}
    files.write_json(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | special)
    files.write_json(out / "generation_config.json", {"eos_token_id": ids.eos_id, "mask_token_id": ids.mask_id})
    files.write_file(out / "chat_template.jinja", TEMPLATE)
    for copied in ("tokenizer.json", "train_log.jsonl"):
        files.write_file(out / copied, (run / copied).read_bytes())
    n_parameters = sum(weight.numel() for weight in weights.values())
    files.write_file(out / "README.md", write_card(run, spec, name, n_parameters))
    checkpoint = open_checkpoint(out, need_tokenizer=True)
    if checkpoint.spec != spec:
        raise SystemExit(f"read back as {checkpoint.spec}, trained as {spec}")
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"written   {out}   {n_parameters / 1e6:.2f} M parameters, {size / 1e6:.1f} MB")


def write_weights(out: Path, spec: ModelSpec, weights: dict[str, torch.Tensor]) -> None:
    shapes = role_shapes(spec)
    if set(weights) != set(shapes):
        raise SystemExit(f"weights.safetensors does not fit the shape: {sorted(set(weights) ^ set(shapes))[:4]}")
    name = FAMILIES[spec.family].tensor_name
    stored = {name(role): weights[role].to(torch.bfloat16).contiguous() for role in shapes}
    files.write_file(out / "model.safetensors", save(stored, {"format": "pt"}))


def write_card(run: Path, spec: ModelSpec, name: str, n_parameters: int) -> str:
    full = spec.conventions.attention == "full"
    last = json.loads((run / "train_log.jsonl").read_text().splitlines()[-1])
    measured = run / "eval.json"
    return CARD.format(
        name=name,
        millions=n_parameters / 1e6,
        kind="It denoises the whole text at once." if full else "It denoises block by block, from left to right.",
        architecture=spec.architecture,
        layers=spec.n_layers,
        hidden=spec.hidden_size,
        heads=spec.n_heads,
        kv_heads=spec.n_kv_heads,
        width=spec.intermediate_size,
        attention="bidirectional" if full else "block-causal on a grid from position 0",
        block=spec.conventions.block_length,
        vocab=spec.vocab_size,
        mask=spec.conventions.mask_id,
        eos=spec.conventions.eos_id,
        training=f"{last['step']} steps in {last['minutes']:.0f} minutes on CPU cores",
        quality=describe(json.loads(measured.read_text())) if measured.exists() else "Not measured yet.",
    )


def describe(measured: dict[str, Any]) -> str:
    """A table of every number of eval.json; the values of an inner object come one a row."""
    rows = ["| quantity | value |", "|---|---|"]
    for key, value in measured.items():
        for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
            shown = f"{number:.3f}" if isinstance(number, float) else json.dumps(number)
            rows.append(f"| {key} {inner}".rstrip() + f" | {shown} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
