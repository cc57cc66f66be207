"""The tables of docs/samplers.md, from the samplers: `python tools/write_samplers.py`, with --check only compare.

What a sampler does and where it is from is the first sentence of its module; ranges are those of its options'
annotations, meanings the comments beside them.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import msgspec.inspect
from page_tables import write_tables

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dlm_edge.runtime.samplers import SAMPLERS, Needs, Sampler  # noqa: E402 - only now it is on the path

PAGE = ROOT / "docs" / "samplers.md"
BEGIN, END = "<!-- tables of tools/write_samplers.py -->\n", "<!-- end of tables -->\n"
HEAD = "| sampler | what a step commits | needs | from |\n|---|---|---|---|\n"
SETTINGS = "| sampler | setting | default | takes | meaning |\n|---|---|---|---|---|\n"
UNBOUNDED = 1e6  # limits from here on only keep nonsense out
NEEDS = {  # empty: nothing that a user sees
    "needs_full_logits": "",
    "needs_placed": "",
    "needs_left_out": "dense attention; evaluates a text for each placed token",
    "needs_whole_text": "",
    "needs_soft_input": "a checkpoint trained to read its last guess",
    "needs_guide": "a guide, a second model of the same vocabulary: `--guide BUNDLE`",
    "needs_filter": "a filter: `dlm-edge train-filter`",
    "can_edit": "no structured output: changes tokens that are placed",
    "full_attention": "full attention",
    "chooses_ids": "no structured output",
    "ends_at_stop": "",
}


def tables() -> str:
    rows = "".join(row(sampler) for sampler in SAMPLERS.values())
    settings = "".join(settings_rows(sampler) for sampler in SAMPLERS.values())
    return HEAD + rows + "\n" + SETTINGS + settings


def row(sampler: Sampler[Any]) -> str:
    does, source = first_sentence(module_of(sampler).__doc__ or "")
    return cells(f"`{sampler.name}`", does, "; ".join(needs(sampler)), linked(source))


def module_of(sampler: Sampler[Any]) -> Any:
    return importlib.import_module(f"dlm_edge.runtime.samplers.{sampler.name.replace('-', '_')}")


def first_sentence(text: str) -> tuple[str, str]:
    """Without what stands in its first parentheses, and that by itself."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    found = re.search(r" ?\(([^()]*)\)", paragraph)
    source = "" if found is None else found[1]
    rest = paragraph if found is None else paragraph[: found.start()] + paragraph[found.end() :]
    return re.split(r"(?<=[.:])\s(?=[A-Z])|\.$", rest)[0].rstrip("."), source


def linked(source: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def needs(sampler: Sampler[Any]) -> list[str]:
    assert set(NEEDS) == set(Needs.__dataclass_fields__), "say what the new need means to a user"
    found = [words for name, words in NEEDS.items() if words and getattr(sampler.needs, name)]
    if len([each for each in found if each.startswith("no structured output")]) > 1:
        found.remove(NEEDS["chooses_ids"])
    if sampler.drafts is not None:
        found.append("dense attention; evaluates several texts at once")
    if "marker" in sampler.texts.values():
        found.append("its markers in the vocabulary")
    return found


def settings_rows(sampler: Sampler[Any]) -> str:
    described = msgspec.inspect.type_info(sampler.options)
    assert isinstance(described, msgspec.inspect.StructType)
    notes = comments(sampler.options)
    return "".join(
        cells(
            f"`{sampler.name}`", f"`{field.name}`", shown(field.default), takes(field.type), notes.get(field.name, "")
        )
        for field in described.fields
    )


def takes(kind: msgspec.inspect.Type) -> str:
    if isinstance(kind, msgspec.inspect.UnionType):
        return " or ".join(takes(each) for each in kind.types if not isinstance(each, msgspec.inspect.NoneType))
    if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        words = "whole number, " if isinstance(kind, msgspec.inspect.IntType) else ""
        low, high = kind.ge or 0, kind.le
        return words + (f"from {low:g} up" if high is None or high >= UNBOUNDED else f"{low:g} to {high:g}")
    if isinstance(kind, msgspec.inspect.LiteralType):
        return " or ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return "list of texts"
    return {"StrType": "text", "BoolType": "`true` or `false`"}[type(kind).__name__]


def shown(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, tuple):
        return ", ".join(shown(each) for each in default)
    return f"`{default!r}`" if isinstance(default, str) and not default.isprintable() else f"`{default}`"


def comments(options: type) -> dict[str, str]:
    """By field; those of a base class where the class itself has none."""
    found: dict[str, str] = {}
    for each in reversed(options.__mro__):
        if each.__module__.startswith("dlm_edge."):
            found |= dict(re.findall(r"^    (\w+):[^\n#]*#\s*(.*)$", inspect.getsource(each), re.MULTILINE))
    return {name: note.rstrip(" ;,").replace("None:", "not given:") for name, note in found.items()}


def cells(*texts: str) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |\n"


def main(arguments: list[str]) -> int:
    return write_tables(PAGE, tables(), BEGIN, END, "write_samplers", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
