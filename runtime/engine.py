"""The engine an application embeds: open a bundle, generate, stream, submit, close."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dlm_edge.bundle import Bundle, open_bundle
from dlm_edge.errors import EnvironmentProblem, UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import OPERATOR_VERSION
from dlm_edge.runtime.budget import attention_bytes, cache_bytes, check_budget, parse_bytes
from dlm_edge.runtime.cache import largest_step_window
from dlm_edge.runtime.denoise import DecodeSettings, check_request, lay_out
from dlm_edge.runtime.events import Event, Result
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.job_runner import JobRunner
from dlm_edge.runtime.layouts import CacheShape, bytes_per_token
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.sequence_memory import NO_IDS
from dlm_edge.runtime.session import open_session
from dlm_edge.runtime.settings import GenerateSettings, resolve, with_bundle_defaults
from dlm_edge.runtime.step_model import StepModel
from dlm_edge.runtime.template import ChatTemplate, Message
from dlm_edge.runtime.text import TextCodec
from dlm_edge.runtime.worker import Worker

Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an engine consists of. `Engine.open` makes them from a bundle."""

    spec: ModelSpec
    model: StepModel
    codec: TextCodec
    template: ChatTemplate | None
    sampler_defaults: dict[str, Any]
    device: str
    native_operators: bool
    weight_bytes: int = 0
    cache_layout: str = "kv-fp32"
    cache_group: int = 128
    cache_bytes_per_position: int = 0
    bundle_hash: str = ""
    memory_budget: int | None = None


class Engine:
    """One model, one worker thread; every method may be called from any thread, except from a callback.

        with Engine.open(folder) as engine:
            print(engine.generate("Once upon a time", max_new_tokens=64).text)

    Settings are the fields of GenerateSettings. An engine that nobody holds any more closes itself.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._worker = Worker(parts.model, JobRunner(parts.model, parts.spec.conventions, parts.codec))
        self._finalizer = weakref.finalize(self, self._worker.close)  # also at the interpreter's exit

    @classmethod
    def open(
        cls,
        path: Path | str,
        device: str = "auto",
        *,
        threads: int | None = None,
        memory_budget: int | str | None = None,
    ) -> Engine:
        """`memory_budget` in bytes or as "6GiB": refused with E-MEM where weights and caches would exceed it."""
        bundle = open_bundle(Path(path))
        manifest, spec = bundle.manifest, bundle.manifest.model
        if manifest.operator_version > OPERATOR_VERSION:
            found = f"operators of version {manifest.operator_version}, this installation has {OPERATOR_VERSION}"
            raise EnvironmentProblem(
                "E-OP", f"{path} needs {found}", "install the version of dlm-edge that exported it"
            )
        budget = parse_bytes(memory_budget)
        weights = sum(entry.size for entry in manifest.files if entry.name.startswith("model.onnx"))
        shape = CacheShape.of(spec)
        per_position = math.ceil(bytes_per_token(manifest.cache_layout, shape, group=manifest.cache_group))
        check_budget(budget, weights, cache_bytes(spec, manifest.cache_layout, manifest.cache_group, 1))
        codec = TextCodec.read(bundle.tokenizer_path, spec)
        opened = open_session(bundle.graph_path, device=device, threads=threads, target=manifest.target)
        return cls(
            Parts(
                spec=spec,
                model=OrtStepModel(opened, spec, manifest.cache_layout, manifest.cache_group),
                codec=codec,
                template=read_template(bundle, codec),
                sampler_defaults=manifest.sampler_defaults,
                device=opened.device,
                native_operators=opened.native_operators,
                weight_bytes=weights,
                cache_layout=manifest.cache_layout,
                cache_group=manifest.cache_group,
                cache_bytes_per_position=per_position,
                bundle_hash=bundle.graph_hash,
                memory_budget=budget,
            )
        )

    @property
    def spec(self) -> ModelSpec:
        return self.parts.spec

    @property
    def device(self) -> str:
        return self.parts.device

    @property
    def has_chat_template(self) -> bool:
        return self.parts.template is not None

    @property
    def is_closed(self) -> bool:
        return self._worker.is_closed

    def generate(self, prompt: Prompt, *, raw: bool = False, **settings: Any) -> Result:
        """Wait for the whole text. `prompt`: text (wrapped by the chat template unless `raw`), messages, or ids."""
        return self._submit(prompt, raw, settings, is_watched=False).result()

    def submit(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        on_event: Callable[[Event], None] | None = None,
        **settings: Any,
    ) -> Job:
        """Queue a job. `on_event` is called on the worker thread; what it raises cancels the job."""
        return self._submit(prompt, raw, settings, on_event=on_event)

    def stream(self, prompt: Prompt, *, raw: bool = False, **settings: Any) -> Iterator[Event]:
        """Events as they come. Leaving the loop early cancels the job."""
        return follow(self._submit(prompt, raw, settings))

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The token ids that the model will see. Raises E-PROMPT, E-UTF8, E-TEMPLATE and E-TOK."""
        if isinstance(prompt, str):
            messages: Sequence[Message] = [{"role": "user", "content": prompt}]
        elif all(isinstance(entry, dict) for entry in prompt) and len(prompt):
            messages = [entry for entry in prompt if isinstance(entry, dict)]
        else:
            return self.parts.codec.check_ids([entry for entry in prompt])  # type: ignore[misc]
        if raw or (self.parts.template is None and isinstance(prompt, str)):
            if not isinstance(prompt, str):
                raise UsageProblem("E-USAGE", "raw goes with a text, not with messages", "drop raw, or give a text")
            return self.parts.codec.encode_text(prompt)
        if self.parts.template is None:
            raise UsageProblem("E-TEMPLATE", "this bundle has no chat template for messages", "give a text")
        return self.parts.codec.encode_chat(messages, self.parts.template)

    @property
    def keeps_prompts(self) -> bool:
        """Whether a request can reuse what the one before it stored: only where no key depends on later blocks."""
        return isinstance(self.parts.model, OrtStepModel) and self.parts.spec.conventions.attention != "full"

    def save_prompt_cache(self, path: Path | str) -> int:
        """Write what the last request stored of prompt and text to a file, after the jobs that wait; its positions.

        Raises E-STATE where nothing is stored, E-IO.
        """
        from dlm_edge.runtime.prompt_cache import save_prompt_cache

        model = self._prompt_keeper()
        return self._worker.call(lambda: save_prompt_cache(Path(path), model, self.parts.bundle_hash))

    def load_prompt_cache(self, path: Path | str) -> int:
        """Let the next request begin with what `save_prompt_cache` wrote with this bundle; its positions.

        Raises E-CACHE for every other file (nothing is stored then), E-STATE where the model cannot reuse it.
        """
        from dlm_edge.runtime.prompt_cache import load_prompt_cache

        model = self._prompt_keeper()
        return self._worker.call(lambda: load_prompt_cache(Path(path), model, self.parts.bundle_hash))

    def forget_prompt(self) -> None:
        """Let the next request compute its whole prompt."""
        self._worker.call(lambda: self.parts.model.keep(NO_IDS, 1))

    def _prompt_keeper(self) -> OrtStepModel:
        self._worker.check_usable()
        if not self.keeps_prompts or not isinstance(self.parts.model, OrtStepModel):
            message = "with full attention every key depends on the whole text, so no prompt can be kept"
            raise UsageProblem("E-STATE", message, "use a model with block-causal attention")
        if self.device != "cpu":
            raise UsageProblem("E-STATE", f"caches on {self.device} cannot be saved or loaded yet", "use --device cpu")
        return self.parts.model

    def _working_bytes(self, ids: Sequence[int], decode: DecodeSettings) -> int:
        """What a request takes beside the weights. What `lay_out` refuses is refused here, and not on the worker."""
        parts, conventions = self.parts, self.parts.spec.conventions
        blocks, canvas = lay_out(conventions, ids, decode)
        positions = len(canvas.ids)
        rows = largest_step_window(decode.cache, blocks, positions, conventions.logit_shift)
        scores = 4 * decode.sub_block_length * parts.spec.vocab_size
        caches = cache_bytes(parts.spec, parts.cache_layout, parts.cache_group, positions)
        return scores + caches + attention_bytes(parts.spec, parts.cache_layout, decode.attention, positions, rows)

    def close(self) -> None:
        """Cancel everything and end the worker. Closing again does nothing."""
        if self._worker.is_own_thread():
            self._worker.check_usable()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(
        self,
        prompt: Prompt,
        raw: bool,
        values: dict[str, Any],
        *,
        on_event: Callable[[Event], None] | None = None,
        is_watched: bool = True,
    ) -> Job:
        self._worker.check_usable()
        parts = self.parts
        chosen = with_bundle_defaults(GenerateSettings.of(values), parts.sampler_defaults)
        ids = self.encode(prompt, raw=raw)
        decode = resolve(
            chosen, parts.spec.conventions, room=parts.spec.max_positions - len(ids), layout=parts.cache_layout
        )
        sampler = SAMPLERS[chosen.sampler or ""]
        check_context(parts.spec, len(ids), decode.gen_len)
        check_request(parts.spec.conventions, ids, sampler)
        check_budget(parts.memory_budget, parts.weight_bytes, self._working_bytes(ids, decode))
        job = Job(ids, decode, sampler, self._worker, on_event=on_event, is_watched=is_watched)
        self._worker.put(job)
        return job


def follow(job: Job) -> Iterator[Event]:
    try:
        yield from job
    finally:
        job.cancel()


def check_context(spec: ModelSpec, prompt_tokens: int, gen_len: int) -> None:
    if prompt_tokens + gen_len > spec.max_positions:
        message = (
            f"a prompt of {prompt_tokens} tokens and {gen_len} new ones exceed the context of {spec.max_positions}"
        )
        raise UsageProblem("E-CONTEXT", message, "shorten the prompt, or ask for fewer tokens")


def read_template(bundle: Bundle, codec: TextCodec) -> ChatTemplate | None:
    path = bundle.chat_template_path
    if path is None:
        return None
    spec = bundle.manifest.model
    named = {"bos_token": spec.conventions.bos_id, "eos_token": spec.conventions.eos_id}
    named |= {"pad_token": spec.conventions.pad_id, "mask_token": spec.conventions.mask_id}
    tokens = {name: text for name, i in named.items() if i is not None and (text := codec.special_text(i))}
    return ChatTemplate.read(path, max_positions=spec.max_positions, tokens=tokens)
