r"""Train a reference model on CPU cores (data parallel over processes) or on a GPU.

    python tools/train_reference/train.py --kind block --out build/reference --minutes 90 --procs 2
    python tools/train_reference/train.py --kind full  --out build/reference-full --minutes 40 --procs 2 \
        --start dlm_edge/reference_models/reference

The run can be cut: the same command with --resume goes on from the last saved state.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from batches import EOS_ID, MASK_ID, RowMaker, Rows, hide_in_blocks
from safetensors.torch import load_file, save_file
from tokenizer import train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor
from two_stream import TwoStream
from warm_start import start_from

from dlm_edge.evaluation.text import python_sources
from dlm_edge.families.spec import Conventions, ModelSpec
from dlm_edge.models.transformer import DiffusionTransformer, dense_attention

SHAPES = {  # hidden, layers, heads, kv heads, feed-forward
    "block": (256, 6, 4, 2, 768),
    "full": (256, 6, 4, 4, 768),
    "tiny": (64, 2, 2, 1, 128),
}


def make_spec(kind: str, vocab_size: int, block: int, shape: str) -> ModelSpec:
    hidden, layers, heads, kv_heads, width = SHAPES[shape]
    full = kind == "full"
    return ModelSpec(
        family="llada" if full else "sdar",
        architecture="LLaDAModelLM" if full else "SDARForCausalLM",
        vocab_size=vocab_size, embedding_rows=vocab_size, hidden_size=hidden, n_layers=layers, n_heads=heads,
        n_kv_heads=kv_heads, head_dim=hidden // heads, intermediate_size=width, rope_theta=10000.0,
        norm_eps=1e-6, qkv_bias=False, qk_norm=not full, tied_head=not full, max_positions=4096,
        conventions=Conventions(
            mask_id=MASK_ID, logit_shift=0, attention="full" if full else "block_causal", block_length=block,
            sub_block_length=block, grid_origin="prompt_end" if full else "zero", first_token_rule="predicted",
            kv_commit_rule="approximate" if full else "extra_pass", stop_ids=(EOS_ID,), eos_id=EOS_ID, pad_id=EOS_ID,
        ),
    )  # fmt: skip


class Objective:
    """Loss of each kind of row; keeps the retrieval curriculum."""

    def __init__(self, model: DiffusionTransformer, maker: RowMaker, scale: int) -> None:
        self.model, self.maker, self.scale = model, maker, scale
        self.full = model.spec.conventions.attention == "full"
        self.block = maker.block or 16
        self.patterns: dict[tuple[int, int], TwoStream] = {}
        self.record_limit = 253 if self.full else 509
        self.n_records, self.accuracy = 8, 0.0
        self.hits = torch.zeros(2)  # right, asked: overridden records of the last step

    def losses(self, step: int) -> dict[str, Tensor]:
        maker, scale = self.maker, self.scale
        learned = self.n_records == self.record_limit and self.accuracy > 0.9
        # Once look-up works at full length, the short tasks get more of the step.
        parts = {
            "text": lambda: self.loss(maker.text(5 * scale, 256)),
            "short": lambda: self.loss(maker.short((40 if learned else 20) * scale)),
            "find": lambda: self.find_loss(2048 * scale),
        }
        if self.full:
            length = [32, 48, 64][step % 3]  # canvases of several lengths
            parts["text"] = lambda: self.loss(maker.text(3 * scale, 128))
            parts["short"] = lambda: self.loss(maker.short(2400 * scale // length, length))
            parts["find"] = lambda: self.find_loss(1024 * scale)
        elif self.n_records >= 64 or step > 900:
            length = [128, 128, 256, 512][step % 4]
            parts["long"] = lambda: self.loss(maker.long(1024 * scale // length, length))
            if step % 40 == 39:
                parts["long"] = lambda: self.loss(maker.long(1, 1040))
        return parts

    def loss(self, rows: Rows) -> Tensor:
        return self.full_loss(rows) if self.full else self.two_stream_loss(rows)

    def two_stream_loss(self, rows: Rows) -> Tensor:
        length = rows.ids.shape[1]
        start = int(rows.answers.any(0).nonzero()[0]) // self.block * self.block
        part = Rows(rows.ids[:, start:], rows.answers[:, start:])
        noisy, weights = hide_in_blocks(part, self.block, self.maker.generator)
        if (length, start) not in self.patterns:
            self.patterns[length, start] = TwoStream(length, start, self.block)
        pattern = self.patterns[length, start]
        hidden = self.hidden(torch.cat([rows.ids, noisy], 1), pattern.positions, pattern)[:, length:]
        return self.cross_entropy(hidden, part, weights)

    def full_loss(self, rows: Rows) -> Tensor:
        """Hide answers of the whole row at once; every other row as block decoding leaves it (left part clean)."""
        n_rows, length = rows.ids.shape
        answers = rows.answers.clone()
        last = length - 1 - answers.flip(1).int().argmax(1)
        cut = torch.rand(n_rows, generator=self.maker.generator)
        first = answers.int().argmax(1)
        edge = first + ((last - first) * cut).long()
        semi = torch.arange(n_rows) % 2 == 0
        answers &= ~(semi[:, None] & (torch.arange(length)[None] < edge[:, None]))
        noisy, weights = hide_in_blocks(Rows(rows.ids, answers), length, self.maker.generator)
        hidden = self.hidden(noisy, torch.arange(length), dense_attention(None))
        return self.cross_entropy(hidden, Rows(rows.ids, answers), weights)

    def find_loss(self, tokens: int) -> Tensor:
        """Single stream: only the questions are hidden, and they are the last one or two blocks."""
        n_records = self.n_records
        if self.maker.rng.random() < 0.5:  # also fewer of them, so that no distance is learned by heart
            n_records = self.maker.rng.randint(min(8, n_records), n_records)
        n_rows = max(1, tokens // (2 * n_records + 20))
        # 0.6 at 8 records, less with every doubling, none from 256 on: the stepping stone goes once it is not needed.
        at_home = max(0.0, 0.6 - 0.12 * math.log2(self.n_records / 8))
        rows, overridden = self.maker.find(n_rows, n_records, at_home)
        length = rows.ids.shape[1]
        if self.full:
            noisy, weights = hide_in_blocks(rows, length, self.maker.generator)
            hidden = self.hidden(noisy, torch.arange(length), dense_attention(None))
        else:
            # Only the last block with answers is hidden: earlier answers are context, as they are when decoding.
            last = int(rows.answers.any(0).nonzero()[-1]) // self.block * self.block
            in_block = rows.answers & (torch.arange(length) >= last)
            rows = Rows(rows.ids, in_block)
            noisy, weights = hide_in_blocks(rows, self.block, self.maker.generator)
            block = torch.arange(length) // self.block
            hidden = self.hidden(noisy, torch.arange(length), dense_attention(block[None] <= block[:, None]))
        counted = overridden & (weights > 0)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            guess = self.logits(hidden[counted]).argmax(-1)
        self.hits = torch.tensor([(guess == rows.ids[counted]).sum().item(), counted.sum().item()])
        return self.cross_entropy(hidden, rows, weights)

    def hidden(self, ids: Tensor, positions: Tensor, attend) -> Tensor:  # type: ignore[no-untyped-def]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.model.embed(ids).to(torch.bfloat16)
            return self.model.run_layers(x, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.head(self.model.final_norm(hidden))
        return logits

    def cross_entropy(self, hidden: Tensor, rows: Rows, weights: Tensor) -> Tensor:
        chosen = weights > 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.logits(hidden[chosen])
        nats = F.cross_entropy(logits.float(), rows.ids[chosen], reduction="none")
        return (nats * weights[chosen]).sum() / rows.answers.sum()

    def advance(self, hits: Tensor) -> None:
        """Twice the records once the look-up works on the present number; counted where memory cannot help."""
        if hits[1] > 0:
            self.accuracy = 0.95 * self.accuracy + 0.05 * (hits[0] / hits[1]).item()
        if self.accuracy > 0.92 and self.n_records < self.record_limit:
            self.n_records, self.accuracy = min(self.record_limit, self.n_records * 2), 0.5


def run(rank: int, args: argparse.Namespace, rendezvous: str) -> None:
    torch.set_num_threads(1)
    if args.procs > 1:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=args.procs)
    out = Path(args.out)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    text_ids = load_file(out / "train_ids.safetensors")["ids"]
    torch.manual_seed(args.seed)
    model = DiffusionTransformer(make_spec(args.kind, tokenizer.get_vocab_size(), args.block, args.shape or args.kind))
    initialise(model)
    block = None if args.kind == "full" else args.block
    objective = Objective(model, RowMaker(tokenizer, text_ids, block, args.seed * 1000 + rank), args.scale)
    for name, parameter in model.named_parameters():
        # Gains in front of a linear layer are redundant; only the query norm's sets the sharpness of attention.
        parameter.requires_grad_(parameter.dim() > 1 or "q_norm" in name)
    live = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in live if p.dim() == 2 and n.startswith("layers.")]
    others = [p for n, p in live if not (p.dim() == 2 and n.startswith("layers."))]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    step, spent = 0, 0.0
    if args.start and not args.resume:
        model.load_state_dict(start_from(Path(args.start), model.spec, text_ids))
    if args.resume:
        model.load_state_dict(load_file(out / "weights.safetensors"), strict=False)
        state = torch.load(out / "state.pt", weights_only=True)
        step, spent = state["step"], state["minutes"]
        objective.n_records, objective.accuracy = state["n_records"], state["find_accuracy"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    started, averages = time.process_time(), dict[str, float]()  # pauses on a shared machine do not count
    while True:
        minutes = torch.tensor([spent + (time.process_time() - started) / 60])
        if args.procs > 1:
            dist.broadcast(minutes, 0)
        done = minutes.item() / args.minutes
        if done >= 1 or step >= args.max_steps:
            break
        lr = args.lr * min(1.0, (step + 1) / 40) * (1.0 if done < 0.5 else max(0.01, 2 - 2 * done))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        for kind, part in objective.losses(step).items():
            loss = part()
            loss.backward()
            averages[kind] = 0.95 * averages.get(kind, loss.item()) + 0.05 * loss.item()
        hits = all_reduce([p for _, p in live], objective.hits, args.procs)
        torch.nn.utils.clip_grad_norm_([p for _, p in live], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        objective.advance(hits)
        step += 1
        if rank == 0 and step % 25 == 0:
            record = {"step": step, "minutes": round(minutes.item(), 2), "lr": round(lr, 6)}
            record |= {k: round(v, 3) for k, v in averages.items()}
            record |= {"records": objective.n_records, "find_accuracy": round(objective.accuracy, 3)}
            with (out / "train_log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
        if rank == 0 and (step % 200 == 0):
            save(out, model, optimizers, step, minutes.item(), objective)
    if rank == 0:
        save(out, model, optimizers, step, minutes.item(), objective)
        print(
            f"done: {step} steps, {minutes.item():.1f} minutes, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
        )


def initialise(model: DiffusionTransformer) -> None:
    for name, parameter in model.named_parameters():
        if "q_norm" in name:
            torch.nn.init.constant_(parameter, 1.5)
        elif parameter.dim() == 2:
            deviation = 0.02 if name.startswith(("embed", "head")) else 0.5 * parameter.shape[1] ** -0.5
            if ".o." in name or ".down." in name:
                deviation /= (2 * model.spec.n_layers) ** 0.5
            torch.nn.init.normal_(parameter, std=deviation)


def all_reduce(parameters: list[torch.nn.Parameter], hits: Tensor, procs: int) -> Tensor:
    """Average the gradients over the processes in place; returns the summed counts."""
    if procs == 1:
        return hits
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None] + [hits])
    dist.all_reduce(flat)
    at = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[at : at + p.numel()].view_as(p) / procs)
            at += p.numel()
    return flat[at:]


def save(out: Path, model: DiffusionTransformer, optimizers, step: int, minutes: float, objective: Objective) -> None:  # type: ignore[no-untyped-def]
    tensors = {n: p.detach().clone() for n, p in model.state_dict().items()}
    if model.spec.tied_head:
        tensors.pop("head.weight")
    save_file(tensors, out / "weights.safetensors")
    state = {
        "step": step,
        "minutes": minutes,
        "n_records": objective.n_records,
        "find_accuracy": objective.accuracy,
        "optimizers": [o.state_dict() for o in optimizers],
    }
    torch.save(state, out / "state.pt")


def prepare(out: Path) -> None:
    """Tokenizer and token ids of the text, once per folder."""
    if (out / "train_ids.safetensors").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    texts = python_sources(held_out=False)
    tokenizer = train_tokenizer(texts)
    tokenizer.save(str(out / "tokenizer.json"))
    ids = [i for e in tokenizer.encode_batch(texts) for i in [*e.ids, EOS_ID]]
    save_file({"ids": torch.tensor(ids)}, out / "train_ids.safetensors")
    print(f"{len(texts)} texts, {len(ids)} tokens, {sum(len(t.encode()) for t in texts) / len(ids):.2f} bytes a token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["block", "full"], required=True)
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of processor time of each process")
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--procs", type=int, default=2)
    parser.add_argument("--scale", type=int, default=1, help="multiplies the rows of a step")
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", help="folder of the finished block-causal model: the full one inherits its weights")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    prepare(Path(args.out))
    if args.procs == 1:
        run(0, args, "")
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
        rendezvous = "file://" + os.path.join(tempfile.mkdtemp(), "rendezvous")
        torch.multiprocessing.spawn(run, (args, rendezvous), nprocs=args.procs)


if __name__ == "__main__":
    main()
