"""Work on one job in its seat, in turns: text as it becomes final, frames for who watches, the numbers at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.decode_settings import Stats
from dlm_edge.runtime.denoise import Progress, denoise_in_turns
from dlm_edge.runtime.events import Cell, Frame, Result, Started, Text
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.seats import Seat
from dlm_edge.runtime.stop_text import StopText
from dlm_edge.runtime.text import TextCodec, TextStream


@dataclass(frozen=True, slots=True)
class JobRunner:
    conventions: Conventions
    codec: TextCodec

    def __call__(self, job: Job, seat: Seat) -> Iterator[None]:
        """Yields after the prompt and after every block."""
        if not job.begin():
            return
        began = time.perf_counter()
        prompt_tokens, settings = len(job.request.ids), job.request.settings
        job.emit(Started(prompt_tokens=prompt_tokens, max_new_tokens=settings.gen_len, seed=settings.sampling.seed))
        stream, stop = TextStream(self.codec), StopText(settings.stop_texts)
        given: list[str] = []

        def give(text: str) -> None:
            if text:
                given.append(text)
                job.emit(Text(text=text))

        def on_step(progress: Progress) -> bool:
            tokens, _ = progress.canvas.final_tokens(settings.stop_ids)
            give(stop.push(stream.push(tokens[len(stream.ids) :])))
            if job.is_watched and not stop.found:
                job.emit(self.frame(progress, len(tokens)))
            return stop.found

        tokens, stats = yield from denoise_in_turns(
            seat.model,
            self.conventions,
            job.request.ids,
            settings,
            job.request.sampler,
            on_step=on_step,
            cancelled=job.is_cancel_asked,
            guide=seat.guide,
        )
        give(stop.push(stream.push(tokens[len(stream.ids) :]) + stream.finish()))
        give(stop.finish())
        text = "".join(given)
        if settings.constraint is not None and stats.stop_reason != "cancelled":
            settings.constraint.check_text(text)
        if stop.found:
            stats.stop_reason, tokens = "stop", self.covering(tokens, text)
        job.finish(make_result(job, text, tokens, stats, time.perf_counter() - began))

    def covering(self, tokens: list[int], text: str) -> list[int]:
        """The first tokens, as many as say no more than `text`."""
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self.codec.decode(tokens[:middle])) <= len(text) else (low, middle - 1)
        return tokens[:low]

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
        prompt_tokens=len(job.request.ids),
        new_tokens=len(tokens),
        stop_reason=stats.stop_reason,
        steps=stats.steps,
        forward_passes=stats.forward_passes,
        guide_passes=stats.guide_passes,
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
        seed=job.request.settings.sampling.seed,
    )
