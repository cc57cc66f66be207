"""Named corruptions of a tiny good checkpoint: (name, mutation of the folder, the code it must be refused with)."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[Path], object]
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
NORM = "model.norm.weight"  # the last tensor of the layer order, [64], bfloat16


def join(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def weights(change: Callable[[bytes], bytes]) -> Mutation:
    def mutate(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return mutate


def header(change: Callable[[dict[str, Any]], object]) -> Mutation:
    """Change the parsed header; the tensor data stays."""

    def mutate(folder: Path) -> None:
        entries, data = split(folder / WEIGHTS)
        change(entries)
        (folder / WEIGHTS).write_bytes(join(json.dumps(entries).encode(), data))

    return mutate


def header_text(old: str, new: str) -> Mutation:
    def mutate(folder: Path) -> None:
        entries, data = split(folder / WEIGHTS)
        text = json.dumps(entries)
        assert old in text
        (folder / WEIGHTS).write_bytes(join(text.replace(old, new, 1).encode("utf-8", "surrogateescape"), data))

    return mutate


def entry(**fields: Any) -> Mutation:
    return header(lambda entries: entries[NORM].update(fields))


def renamed(new: str) -> Mutation:
    return header(lambda entries: entries.update({new: entries.pop(NORM)}))


def replaced(data: bytes) -> Mutation:
    return weights(lambda _: data)


def special(make: Callable[[Path], object]) -> Mutation:
    def mutate(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        make(folder / WEIGHTS)

    return mutate


def bind_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # socket paths are limited to about 100 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def shift(by: int) -> Mutation:
    """Move one tensor by some bytes, which leaves a hole and makes an overlap."""

    def change(entries: dict[str, Any]) -> None:
        begin, end = entries[NORM]["data_offsets"]
        entries[NORM]["data_offsets"] = [begin + by, end + by]

    return header(change)


def content(file: str, change: Callable[[dict[str, Any]], object]) -> Mutation:
    def mutate(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        change(value)
        (folder / file).write_text(json.dumps(value))

    return mutate


def text(file: str, value: str | bytes) -> Mutation:
    def mutate(folder: Path) -> None:
        (folder / file).write_bytes(value.encode() if isinstance(value, str) else value)

    return mutate


def both(first: Mutation, second: Mutation) -> Mutation:
    def mutate(folder: Path) -> None:
        first(folder)
        second(folder)

    return mutate


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


def index_entry(file: Any) -> Mutation:
    return content(INDEX, lambda index: index["weight_map"].update({NORM: file}))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 10501248\n"
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


# A2, A11, A12: something else under the name of the weights
OTHER_THINGS: list[tuple[str, Mutation, str]] = [
    ("empty", replaced(b""), "E-ST-HEADER"),
    ("seven bytes", replaced(b"\0" * 7), "E-ST-HEADER"),
    ("lfs pointer", replaced(POINTER), "E-ST-POINTER"),
    ("xet pointer", replaced(b"# xet version 0\nfilesize = 1\nhash = 'x'\n"), "E-ST-POINTER"),
    ("html page", replaced(b"<!DOCTYPE html><html><body>Access denied</body></html>"), "E-ST-HTML"),
    ("html after a byte order mark", replaced(b"\xef\xbb\xbf\n <HTML><body></body></html>"), "E-ST-HTML"),
    ("xml error", replaced(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'), "E-ST-HTML"),
    ("json error", replaced(b'{"error": "Repository not found, are you logged in?"}'), "E-ST-HEADER"),
    ("pickle 2", replaced(pickle.dumps(Exploit(), protocol=2)), "E-PICKLE"),
    ("pickle 4", replaced(pickle.dumps(Exploit(), protocol=4)), "E-PICKLE"),
    ("zip, as torch saves", replaced(b"PK\x03\x04" + b"\0" * 100), "E-PICKLE"),
    ("numpy objects", replaced(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}"), "E-PICKLE"),
    ("fifo", special(os.mkfifo), "E-FILE"),
    ("folder", special(Path.mkdir), "E-FILE"),
    ("socket", special(bind_socket), "E-FILE"),
    ("device", special(lambda path: path.symlink_to("/dev/zero")), "E-FILE"),
    ("dangling link", special(lambda path: path.symlink_to("nowhere")), "E-FILE"),
    ("link to itself", special(lambda path: path.symlink_to(path)), "E-FILE"),
    ("sparse terabyte", special(make_sparse), "E-FILE"),
    ("only a .bin", special(lambda path: (path.parent / "pytorch_model.bin").write_bytes(b"PK")), "E-PICKLE"),
    ("only a .pt", special(lambda path: (path.parent / "model.pt").write_bytes(b"PK")), "E-PICKLE"),
    ("nothing", special(lambda path: None), "E-SHARD"),
]
# A1, A3-A6, A8: the header
HEADERS: list[tuple[str, Mutation, str]] = [
    ("length 2**63", weights(lambda raw: struct.pack("<Q", 2**63) + raw[8:]), "E-ST-HEADER"),
    ("length 2**64 - 1", weights(lambda raw: b"\xff" * 8 + raw[8:]), "E-ST-HEADER"),
    ("length 101 MB", weights(lambda raw: struct.pack("<Q", 101_000_000) + raw[8:]), "E-ST-HEADER"),
    ("length beyond the file", weights(lambda raw: struct.pack("<Q", len(raw)) + raw[8:]), "E-ST-HEADER"),
    ("length 0", weights(lambda raw: struct.pack("<Q", 0) + raw[8:]), "E-ST-HEADER"),
    ("length too short", weights(lambda raw: struct.pack("<Q", 200) + raw[8:]), "E-ST-HEADER"),
    ("header a list", replaced(join(b"[]", b"")), "E-ST-HEADER"),
    ("header not JSON", replaced(join(b"{]", b"")), "E-ST-HEADER"),
    ("header nested 40 deep", replaced(join(deep(40).encode(), b"")), "E-ST-HEADER"),
    ("header nested 100000 deep", replaced(join(deep(100_000).encode(), b"")), "E-ST-HEADER"),
    ("header with NaN", header_text('"BF16"', "NaN"), "E-ST-HEADER"),
    ("metadata with numbers", header(lambda e: e.update(__metadata__={"a": 1})), "E-ST-HEADER"),
    ("metadata a list", header(lambda e: e.update(__metadata__=[])), "E-ST-HEADER"),
    ("unknown field", entry(stride=[1]), "E-ST-HEADER"),
    ("missing field", header(lambda e: e[NORM].pop("dtype")), "E-ST-HEADER"),
    ("entry a number", header(lambda e: e.update({NORM: 1})), "E-ST-HEADER"),
    ("cut in the header", weights(lambda raw: raw[:100]), "E-ST-HEADER"),
    ("cut in the data", weights(lambda raw: raw[:-1]), "E-ST-LAYOUT"),
    ("cut to half", weights(lambda raw: raw[: len(raw) // 2]), "E-ST-LAYOUT"),
    ("trailing byte", weights(lambda raw: raw + b"\0"), "E-ST-LAYOUT"),
    ("moved right", shift(2), "E-ST-LAYOUT"),
    ("moved left", shift(-2), "E-ST-LAYOUT"),
    ("negative offsets", entry(data_offsets=[-128, 0]), "E-ST-LAYOUT"),
    ("offsets swapped", entry(data_offsets=[128, 0]), "E-ST-LAYOUT"),
    ("offsets far away", entry(data_offsets=[2**60, 2**60 + 128]), "E-ST-LAYOUT"),
    ("offset missing", entry(data_offsets=[0]), "E-ST-LAYOUT"),
    ("offsets as text", entry(data_offsets=["0", "128"]), "E-ST-LAYOUT"),
    ("shape too small for its bytes", entry(shape=[63]), "E-ST-LAYOUT"),
    ("hole in front", header(lambda e: e.pop(NORM)), "E-ST-LAYOUT"),
    ("dimension 2**62", entry(shape=[2**62]), "E-ST-SHAPE"),
    ("product overflows", entry(shape=[2**33, 2**33]), "E-ST-SHAPE"),
    ("product wraps to 64", entry(shape=[2**62, 4, 64]), "E-ST-SHAPE"),
    ("negative dimension", entry(shape=[-64]), "E-ST-SHAPE"),
    ("two negative dimensions", entry(shape=[-8, -8]), "E-ST-SHAPE"),
    ("zero dimension", entry(shape=[64, 0]), "E-ST-SHAPE"),
    ("rank 9", entry(shape=[1] * 8 + [64]), "E-ST-SHAPE"),
    ("rank 10000", entry(shape=[1] * 10_000), "E-ST-SHAPE"),
    ("dimension a fraction", entry(shape=[64.0]), "E-ST-SHAPE"),
    ("dimension true", entry(shape=[True]), "E-ST-SHAPE"),
    ("shape a number", entry(shape=64), "E-ST-SHAPE"),
    ("duplicate name", header_text('"model.layers.0.input_layernorm.weight"', f'"{NORM}"'), "E-ST-NAME"),
    ("duplicate metadata", header_text("{", '{"__metadata__": {}, "__metadata__": {},'), "E-ST-NAME"),
    ("name with a path", renamed("../../etc/passwd"), "E-ST-NAME"),
    ("name with a backslash", renamed("..\\x"), "E-ST-NAME"),
    ("name with a newline", renamed("model\nnorm"), "E-ST-NAME"),
    ("name with an escape", renamed("\x1b[2J"), "E-ST-NAME"),
    ("name with a lone surrogate", renamed("\ud800"), "E-ST-NAME"),
    ("empty name", renamed(""), "E-ST-NAME"),
    ("name of a megabyte", renamed("x" * 1_000_000), "E-ST-NAME"),
    ("header not UTF-8", header_text("model.norm", "model.norm\udcff"), "E-ST-HEADER"),
    ("unknown type", entry(dtype="F13"), "E-ST-DTYPE"),
    ("four-bit floats", entry(dtype="F4"), "E-ST-DTYPE"),
    ("type a number", entry(dtype=16), "E-ST-DTYPE"),
    ("eight-bit floats", entry(dtype="F8_E4M3", shape=[128]), "E-ST-DTYPE"),
    ("integers", entry(dtype="I16"), "E-ST-DTYPE"),
    ("unsigned integers", entry(dtype="U16"), "E-ST-DTYPE"),
    ("unexpected tensor", renamed("model.extra.weight"), "E-TENSOR"),
    ("wrong shape", entry(shape=[32, 2]), "E-TENSOR"),
]
# A9: shards and their index (the good folder has two shards)
SHARDS: list[tuple[str, Mutation, str]] = [
    ("shard missing", lambda folder: (folder / SHARD_2).unlink(), "E-SHARD"),
    ("all shards missing", both(lambda f: (f / SHARD_1).unlink(), lambda f: (f / SHARD_2).unlink()), "E-SHARD"),
    ("index missing", lambda folder: (folder / INDEX).unlink(), "E-SHARD"),
    ("extra shard", lambda f: (f / "model-00003-of-00003.safetensors").write_bytes(b""), "E-SHARD"),
    ("single file beside the shards", lambda f: os.link(f / SHARD_1, f / WEIGHTS), "E-SHARD"),
    (
        "single file, index lost",
        both(lambda f: os.link(f / SHARD_1, f / WEIGHTS), lambda f: (f / INDEX).unlink()),
        "E-SHARD",
    ),
    ("index names a parent", index_entry("../model.safetensors"), "E-SHARD"),
    ("index names an absolute path", index_entry("/etc/passwd"), "E-SHARD"),
    ("index names a folder", index_entry("sub/model.safetensors"), "E-SHARD"),
    ("index names a drive", index_entry("C:\\model.safetensors"), "E-SHARD"),
    ("index names a pickle", index_entry("pytorch_model.bin"), "E-SHARD"),
    ("index with NUL", index_entry("model\0.safetensors"), "E-SHARD"),
    ("index with a number", index_entry(3), "E-SHARD"),
    ("index empty", content(INDEX, lambda index: index.update(weight_map={})), "E-SHARD"),
    ("index without a map", content(INDEX, lambda index: index.pop("weight_map")), "E-SHARD"),
    ("index a list", text(INDEX, "[]"), "E-JSON"),
    ("index too large", text(INDEX, b" " * (64 << 20) + b"{}"), "E-JSON"),
    ("index with a duplicate", text(INDEX, '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'), "E-JSON"),
    ("tensor in the wrong shard", content(INDEX, lambda i: i["weight_map"].update({NORM: other_shard(i)})), "E-SHARD"),
    ("tensor not in the index", content(INDEX, lambda i: i["weight_map"].pop(NORM)), "E-SHARD"),
    ("tensor only in the index", content(INDEX, lambda i: i["weight_map"].update({"model.x": SHARD_1})), "E-SHARD"),
    ("shard a pointer", text(SHARD_2, POINTER), "E-ST-POINTER"),
    ("shard cut off", lambda f: os.truncate(f / SHARD_2, (f / SHARD_2).stat().st_size - 5), "E-ST-LAYOUT"),
    ("shard twice", lambda f: (f / SHARD_2).write_bytes((f / SHARD_1).read_bytes()), "E-SHARD"),
]


def other_shard(index: dict[str, Any]) -> str:
    return SHARD_1 if index["weight_map"][NORM] == SHARD_2 else SHARD_2


# D4 and D2: config.json as a file
CONFIGS: list[tuple[str, Mutation, str]] = [
    ("config missing", lambda folder: (folder / CONFIG).unlink(), "E-CONFIG"),
    ("config a folder", both(lambda f: (f / CONFIG).unlink(), lambda f: (f / CONFIG).mkdir()), "E-FILE"),
    ("config a fifo", both(lambda f: (f / CONFIG).unlink(), lambda f: os.mkfifo(f / CONFIG)), "E-FILE"),
    ("config empty", text(CONFIG, ""), "E-JSON"),
    ("config a list", text(CONFIG, "[]"), "E-JSON"),
    ("config YAML", text(CONFIG, "hidden_size: 64\n"), "E-JSON"),
    ("config cut off", lambda f: os.truncate(f / CONFIG, 100), "E-JSON"),
    ("config 33 deep", text(CONFIG, deep(34)), "E-JSON"),
    ("config 100000 deep", text(CONFIG, deep(100_000)), "E-JSON"),
    ("config lists 100000 deep", text(CONFIG, '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), "E-JSON"),
    ("config with a duplicate", text(CONFIG, '{"hidden_size": 64, "hidden_size": 65}'), "E-JSON"),
    ("config with NaN", text(CONFIG, '{"rope_theta": NaN}'), "E-JSON"),
    ("config with Infinity", text(CONFIG, '{"rope_theta": -Infinity}'), "E-JSON"),
    ("config with 1e999", text(CONFIG, '{"rope_theta": 1e999}'), "E-JSON"),
    ("config with 5000 digits", text(CONFIG, '{"hidden_size": ' + "9" * 5000 + "}"), "E-JSON"),
    ("config not UTF-8", text(CONFIG, b'{"a": "\xff"}'), "E-JSON"),
    ("config of 5 MB", text(CONFIG, " " * (5 << 20) + "{}"), "E-JSON"),
    (
        "no architecture",
        content(CONFIG, lambda c: [c.pop(k) for k in ("architectures", "model_type")]),
        "E-ARCH",
    ),
    ("unknown architecture", content(CONFIG, lambda c: c.update(architectures=["LLaDAMoEModelLM"])), "E-ARCH"),
    ("generation config broken", text("generation_config.json", "{"), "E-JSON"),
]
# C2: the tokenizer
TOKENIZERS: list[tuple[str, Mutation, str]] = [
    ("id beyond the embedding", content("tokenizer.json", lambda t: t["added_tokens"][0].update(id=5000)), "E-TOK"),
    ("id 2**32 - 1", content("tokenizer.json", lambda t: t["model"]["vocab"].update(a=2**32 - 1)), "E-TOK"),
    ("negative id", content("tokenizer.json", lambda t: t["model"]["vocab"].update(a=-1)), "E-TOK"),
    ("id as text", content("tokenizer.json", lambda t: t["model"]["vocab"].update(a="1")), "E-TOK"),
    ("id true", content("tokenizer.json", lambda t: t["model"]["vocab"].update(a=True)), "E-TOK"),
    ("two tokens with one id", content("tokenizer.json", lambda t: t["model"]["vocab"].update(a=1, b=1)), "E-TOK"),
    ("no vocabulary", content("tokenizer.json", lambda t: t["model"].pop("vocab")), "E-TOK"),
    ("empty vocabulary", content("tokenizer.json", lambda t: t.update(model={"vocab": {}}, added_tokens=[])), "E-TOK"),
    ("no model", content("tokenizer.json", lambda t: t.pop("model")), "E-TOK"),
    ("added tokens an object", content("tokenizer.json", lambda t: t.update(added_tokens={})), "E-TOK"),
    ("tokenizer not JSON", text("tokenizer.json", "version: 1"), "E-TOK"),
    ("tokenizer 40 deep", text("tokenizer.json", deep(40)), "E-TOK"),
    ("tokenizer of 65 MB", text("tokenizer.json", b" " * (65 << 20)), "E-TOK"),
    ("another mask token", content("tokenizer_config.json", lambda t: t.update(mask_token="a")), "E-TOK"),
]
SINGLE_FILE = [*OTHER_THINGS, *HEADERS, *CONFIGS, *TOKENIZERS]
