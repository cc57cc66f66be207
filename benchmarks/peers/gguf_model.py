"""Model files for llama.cpp: shapes of diffusion language models, random weights, quantized by its own quantizer.

llama_model_quantize is all that llama-quantize calls. With a file type of 4 bits it keeps the output layer, and an
embedding that serves as such, at 6 bits (q6_K), or at 8 where the width is no multiple of 256, unless told otherwise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15}
HEAD_TYPES = {name: getattr(gguf.GGMLQuantizationType, name.upper()).value for name in ("q4_0", "q8_0", "q6_K")}


@dataclass(frozen=True, slots=True)
class Shape:
    architecture: str  # llama.cpp's name
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    intermediate_size: int
    vocab_size: int
    tied_head: bool
    qkv_bias: bool

    def linears(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Tensor names and [rows, columns] of all matrices."""
        hidden, kv_width = self.hidden_size, self.hidden_size // self.n_heads * self.n_kv_heads
        yield "token_embd", (self.vocab_size, hidden)
        if not self.tied_head:
            yield "output", (self.vocab_size, hidden)
        for i in range(self.n_layers):
            for name, rows in (("attn_q", hidden), ("attn_k", kv_width), ("attn_v", kv_width), ("attn_output", hidden)):
                yield f"blk.{i}.{name}", (rows, hidden)
            yield f"blk.{i}.ffn_gate", (self.intermediate_size, hidden)
            yield f"blk.{i}.ffn_up", (self.intermediate_size, hidden)
            yield f"blk.{i}.ffn_down", (hidden, self.intermediate_size)

    def vectors(self) -> Iterator[tuple[str, int]]:
        """Norms (`.weight`) and biases."""
        yield "output_norm.weight", self.hidden_size
        for i in range(self.n_layers):
            yield f"blk.{i}.attn_norm.weight", self.hidden_size
            yield f"blk.{i}.ffn_norm.weight", self.hidden_size
        for name, (rows, _) in self.linears() if self.qkv_bias else ():
            if name.endswith(("attn_q", "attn_k", "attn_v")):
                yield f"{name}.bias", rows

    @property
    def n_parameters(self) -> int:
        return sum(rows * columns for _, (rows, columns) in self.linears()) + sum(size for _, size in self.vectors())


SHAPES = {
    "dream-0.5b": Shape("dream", 896, 24, 14, 2, 4864, 151936, tied_head=True, qkv_bias=True),  # as Qwen2.5-0.5B
    "dream-1.5b": Shape("dream", 1536, 28, 12, 2, 8960, 151936, tied_head=True, qkv_bias=True),  # as Qwen2.5-1.5B
    "llada-0.8b": Shape("llada", 1280, 24, 20, 20, 3520, 126464, tied_head=False, qkv_bias=False),
}


def model_file(folder: Path, shape_name: str, quantization: str, head: str) -> Path:
    """Path of the quantized model, which is written when it is not there."""
    path = folder / f"{shape_name}-{quantization}{'' if head == 'default' else f'-head-{head}'}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    plain, part = path.with_suffix(".f16.part"), path.with_suffix(".part")
    write_random(plain, SHAPES[shape_name])
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = FILE_TYPES[quantization]
    if head != "default":
        settings.output_tensor_type = HEAD_TYPES[head]
    if llama_cpp.llama_model_quantize(str(plain).encode(), str(part).encode(), ctypes.byref(settings)):
        raise SystemExit(f"llama.cpp could not quantize {plain}")
    plain.unlink()
    part.rename(path)
    return path


def write_random(path: Path, shape: Shape) -> None:
    """A GGUF file in float16, random weights that keep the size of activations, a vocabulary of nothing but a size."""
    random, writer = np.random.default_rng(0), gguf.GGUFWriter(path, shape.architecture)
    writer.add_file_type(FILE_TYPES["f16"])
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_context_length(32768)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_rope_dimension_count(shape.hidden_size // shape.n_heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_causal_attention(False)
    for name, (rows, columns) in shape.linears():
        writer.add_tensor_info(f"{name}.weight", (rows, columns), np.dtype(np.float16), 2 * rows * columns)
    for name, size in shape.vectors():
        writer.add_tensor_info(name, (size,), np.dtype(np.float32), 4 * size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, (rows, columns) in shape.linears():
        weights = random.standard_normal((rows, columns), np.float32) * columns**-0.5
        writer.write_tensor_data(weights.astype(np.float16))
    for name, size in shape.vectors():
        writer.write_tensor_data(np.full(size, name.endswith(".weight"), np.float32))
    writer.close()


def describe(path: Path) -> dict[str, object]:
    """Bytes of the file, and how its tensors are stored: bytes by type, and the type of the output layer."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    bytes_by_type: dict[str, int] = {}
    for tensor in tensors.values():
        bytes_by_type[tensor.tensor_type.name] = bytes_by_type.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    return {"file_bytes": path.stat().st_size, "bytes_by_type": bytes_by_type, "head": head.tensor_type.name}
