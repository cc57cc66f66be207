"""One layer's attention in the middle of a block, as tensors on a GPU, and the steps that are timed on it.

Keys are standard normal. The queries of a block share a direction, and of the next step's queries only a few differ:
what diffusion models show (LoSA, arXiv 2604.12056), as far as random numbers can. The pages that a step really read
are counted and reported; with a trained model the union over queries may be smaller or larger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, REUSE_PAGES, SELECT, SELECT_ROWS, Policy
from dlm_edge.kernels.triton import launch

PAGE_SIZE = 16
KEY_GROUP = 64
BUDGET = 256  # tokens that each query may choose
SHARED = 0.9  # of a query's direction, by all queries of the block and head


@dataclass(frozen=True)
class Shape:
    model: str
    n_heads: int
    n_kv_heads: int
    head_dim: int
    q_len: int
    prefix: int


@dataclass
class Workload:
    """`bits` 16, 8 or 4. Everything is allocated at construction; the steps only launch."""

    shape: Shape
    bits: int = 16
    device: str = "cuda"
    seed: int = 0
    selected: launch.Selected | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        s = self.shape
        self.rng = torch.Generator(self.device).manual_seed(self.seed)
        self.capacity = -(-s.prefix // KEY_GROUP) * KEY_GROUP
        shared = self.normal(1, s.n_heads, 1, s.head_dim)
        own = self.normal(1, s.n_heads, s.q_len, s.head_dim)
        self.q_before = SHARED * shared + (1 - SHARED**2) ** 0.5 * own
        self.q = self.q_before.clone()
        moved = max(1, s.q_len // 3)
        self.q[:, :, ::3][:, :, :moved] += 0.5 * self.normal(1, s.n_heads, 1, s.head_dim)
        self.k, self.v = (self.normal(1, s.n_kv_heads, s.q_len, s.head_dim) for _ in range(2))
        keys, values = (self.normal(1, s.n_kv_heads, self.capacity, s.head_dim) for _ in range(2))
        self.low, self.high, self.page_scale = page_bounds(keys)
        self.cache = launch.Cache(keys, values) if self.bits == 16 else self.quantized(keys, values)
        n_slots = self.capacity // PAGE_SIZE
        self.q_last, self.q_stored = self.q_before.clone(), self.q_before.clone()
        self.state = launch.PrefixState(
            self.floats(1, s.n_heads, s.q_len, s.head_dim),
            self.floats(1, s.n_heads, s.q_len),
            self.floats(1, s.n_kv_heads, n_slots),
        )

    @property
    def value_group(self) -> int:
        return 16 if self.shape.head_dim % 64 else 64

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.rng, device=self.device).half()

    def floats(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def quantized(self, keys: torch.Tensor, values: torch.Tensor) -> launch.Cache:
        k, k_scale, k_low = quantized(keys.unflatten(2, (-1, KEY_GROUP)), 3, self.bits)
        v, v_scale, v_low = quantized(values.unflatten(3, (-1, self.value_group)), 4, self.bits)
        begin = self.shape.prefix // KEY_GROUP * KEY_GROUP
        tail = torch.zeros_like(keys[:, :, :KEY_GROUP], dtype=torch.float32)
        tail[:, :, : self.shape.prefix - begin] = keys[:, :, begin : self.shape.prefix]
        k, v = packed(k.flatten(2, 3), self.bits), packed(v.flatten(3, 4), self.bits)
        return launch.Cache(k, v, self.bits, k_scale, k_low, tail, v_scale, v_low)

    def policy(self, name: str) -> Policy:
        n_pages = BUDGET // PAGE_SIZE
        losa = Policy(SELECT, n_pages, n_active=max(1, self.shape.q_len * 5 // 16), page_size=PAGE_SIZE)
        return {
            "dense": replace(losa, mode=DENSE),
            "losa": losa,
            "losa by masses": replace(losa, mode=SELECT_ROWS, n_pages=4 * n_pages),
            "quest": replace(losa, n_active=self.shape.q_len),
            "mage first": replace(losa, mode=DENSE_KEEP),
            "mage": replace(losa, mode=REUSE_PAGES, n_pages=4 * n_pages),  # one list serves all queries
        }[name]

    def step(self, name: str, q: torch.Tensor | None = None) -> torch.Tensor:
        """SelectPages and PrefixBlockAttention of one step, [1, q_len, n_heads * head_dim]."""
        s, policy = self.shape, self.policy(name)
        q = self.q if q is None else q
        self.selected = launch.select_pages(
            q, self.low, self.high, self.page_scale, self.q_last, self.q_stored, self.state.masses, s.prefix, s.prefix,
            policy,
        )  # fmt: skip
        measure = policy.mode == DENSE_KEEP
        return launch.sparse_attention(
            q, self.k, self.v, self.cache, s.prefix, s.prefix, s.q_len, self.selected.active, self.selected.pages,
            measure, self.state,
        )  # fmt: skip

    def prepare(self, name: str) -> Callable[[], object]:
        """The step `name` as it is in the middle of a block; what it needs from earlier steps has been run.

        Every call restores the last queries first: after one step nothing would have moved any more.
        """
        if name == "plain dense":
            numbers = (self.shape.prefix, self.shape.prefix, self.shape.q_len)
            return lambda: launch.dense_attention(self.q, self.k, self.v, self.cache, *numbers)
        self.step("mage first" if name in ("mage", "losa by masses") else "dense", self.q_before)

        def run() -> None:
            self.q_last.copy_(self.q_before)
            self.step(name)

        return run

    def bytes_read(self, name: str) -> float:
        """Of the prefix, by the step that ran last: keys, values, their scales, and page bounds."""
        s = self.shape
        per_key = 2 * s.head_dim * self.bits / 8
        if self.bits != 16:
            per_key += 4 * s.head_dim / KEY_GROUP + 4 * s.head_dim / self.value_group
        if name == "plain dense" or self.selected is None:
            return per_key * s.prefix * s.n_kv_heads
        _, pages, _, reads_bounds = self.selected.stats.tolist()
        bounds = s.n_kv_heads * -(-s.prefix // PAGE_SIZE) * (2 * s.head_dim + 4) * reads_bounds
        return per_key * pages * PAGE_SIZE + bounds

    def density(self) -> float:
        assert self.selected is not None
        _, pages, valid, _ = self.selected.stats.tolist()
        return pages / valid


def page_bounds(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """low, high int8 [1, n_kv_heads, n_slots, head_dim] and page_scale float32 [1, n_kv_heads, n_slots]."""
    pages = keys.float().unflatten(2, (-1, PAGE_SIZE))
    scale = pages.abs().amax((3, 4)).clamp_min(1e-30) / 127
    low, high = (pages.amin(3) / scale[..., None]).floor(), (pages.amax(3) / scale[..., None]).ceil()
    return low.clamp(-127, 127).to(torch.int8), high.clamp(-127, 127).to(torch.int8), scale


def quantized(groups: torch.Tensor, axis: int, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 codes like `groups`, and float16 scale and low without `axis`."""
    values = groups.float()
    low = values.amin(axis).half()
    scale = ((values.amax(axis) - low.float()) / (2**bits - 1)).clamp_min(1e-6).half()
    codes = ((values - low.float().unsqueeze(axis)) / scale.float().unsqueeze(axis)).round()
    return codes.clamp(0, 2**bits - 1).to(torch.uint8), scale, low


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return (codes[..., ::2] | codes[..., 1::2] << 4).contiguous() if bits == 4 else codes.contiguous()
