"""Run one job on a model: text as it becomes final, frames for who watches, and the numbers at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.denoise import Progress, Stats, denoise
from dlm_edge.runtime.events import Cell, Frame, Result, Started, Text
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.step_model import StepModel
from dlm_edge.runtime.text import TextCodec, TextStream


@dataclass(frozen=True, slots=True)
class JobRunner:
    model: StepModel
    conventions: Conventions
    codec: TextCodec

    def __call__(self, job: Job) -> None:
        began = time.perf_counter()
        prompt_tokens, settings = len(job.prompt_ids), job.settings
        job.emit(Started(prompt_tokens=prompt_tokens, max_new_tokens=settings.gen_len, seed=settings.sampling.seed))
        stream = TextStream(self.codec)

        def on_step(progress: Progress) -> None:
            tokens, _ = progress.canvas.final_tokens(settings.stop_ids)
            if new := stream.push(tokens[len(stream.ids) :]):
                job.emit(Text(text=new))
            if job.is_watched:
                job.emit(self.frame(progress, len(tokens)))

        tokens, stats = denoise(
            self.model,
            self.conventions,
            job.prompt_ids,
            settings,
            job.sampler,
            on_step=on_step,
            cancelled=job.is_cancel_asked,
        )
        if last := stream.push(tokens[len(stream.ids) :]) + stream.finish():
            job.emit(Text(text=last))
        job.finish(make_result(job, stream.text, tokens, stats, time.perf_counter() - began))

    def frame(self, progress: Progress, n_final: int) -> Frame:
        canvas = progress.canvas
        first, last = canvas.prompt_len + n_final, min(progress.block_end, canvas.prompt_len + canvas.gen_len)
        cells = []
        for position in range(first, last):
            confidence = float(canvas.confidence[position])
            if canvas.is_masked[position]:
                cells.append(Cell(None, None, confidence))
            else:
                token = int(canvas.ids[position])
                cells.append(Cell(token, self.codec.token_text(token), confidence))
        return Frame(
            step=progress.step,
            block=progress.block,
            n_blocks=progress.n_blocks,
            committed_tokens=n_final,
            cells=cells,
        )


def make_result(job: Job, text: str, tokens: list[int], stats: Stats, seconds: float) -> Result:
    return Result(
        text=text,
        token_ids=tokens,
        prompt_tokens=len(job.prompt_ids),
        new_tokens=len(tokens),
        stop_reason=stats.stop_reason,
        steps=stats.steps,
        forward_passes=stats.forward_passes,
        steps_per_token=stats.forward_passes / len(tokens) if tokens else None,
        prefill_seconds=stats.prefill_seconds,
        prefill_passes=stats.prefill_passes,
        reused_tokens=stats.reused_tokens,
        seconds=seconds,
        effective_tokens_per_s=len(tokens) / seconds,
        blocks=stats.blocks,
        density=stats.density,
        active_rows=stats.active_rows,
        pages_read=stats.pages_read,
        seed=job.settings.sampling.seed,
    )
