"""A second bundle as the guide of a first one: whether they fit together, what it takes, and opening it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlm_edge.bundle import Bundle
from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.budget import cache_bytes
from dlm_edge.runtime.bundle_models import open_models, weight_bytes
from dlm_edge.runtime.guide import GuideModel
from dlm_edge.runtime.layouts import layout_kind
from dlm_edge.runtime.text import TextCodec

SAME = "use a guide with the same vocabulary"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideParts:
    spec: ModelSpec
    models: Sequence[GuideModel]  # one for each job in flight
    weight_bytes: int = 0
    cache_layout: str = "kv-fp32"
    cache_group: int = 128

    def working_bytes(self, positions: int, slots: int) -> int:
        """Of caches, and of scores for so many slots."""
        caches = cache_bytes(self.spec, self.cache_layout, self.cache_group, positions)
        return caches + 4 * slots * self.spec.vocab_size

    def check_context(self, positions: int) -> None:
        if positions > self.spec.max_positions:
            message = f"a text of {positions} positions exceeds the guide's context of {self.spec.max_positions}"
            raise UsageProblem("E-CONTEXT", message, "shorten the prompt, or ask for fewer tokens")


def open_guide(bundle: Bundle, device: str, *, threads: int | None, parallel: int, background: bool) -> GuideParts:
    """Raises what open_session raises."""
    manifest = bundle.manifest
    _, models = open_models(bundle, device, threads=threads, parallel=parallel, background=background)
    stores = layout_kind(manifest.cache_layout).form != "none"
    return GuideParts(
        spec=manifest.model,
        models=[GuideModel(model, manifest.model.conventions, stores) for model in models],
        weight_bytes=weight_bytes(bundle),
        cache_layout=manifest.cache_layout,
        cache_group=manifest.cache_group,
    )


def check_same_vocabulary(own: TextCodec, guide: TextCodec) -> None:
    """E-PARAM or E-TOK where ids do not mean the same, naming the first difference: drafts pass between the models as ids."""
    sizes, masks = (own.spec.vocab_size, guide.spec.vocab_size), (own.spec.conventions, guide.spec.conventions)
    if sizes[0] != sizes[1]:
        raise UsageProblem("E-PARAM", f"the guide has {sizes[1]} tokens, and the model {sizes[0]}", SAME)
    if masks[0].mask_id != masks[1].mask_id:
        message = f"the guide's mask is token {masks[1].mask_id}, and the model's is {masks[0].mask_id}"
        raise UsageProblem("E-PARAM", message, SAME)
    tokens = [{i: text for text, i in vocabulary_of(codec).items()} for codec in (own, guide)]
    for token in sorted(tokens[0].keys() | tokens[1].keys()):
        texts = [found.get(token) for found in tokens]
        if texts[0] != texts[1]:
            message = f"token {token} is {texts[1]!r} in the guide's tokenizer, and {texts[0]!r} in the model's"
            raise UsageProblem("E-TOK", message, SAME)


def vocabulary_of(codec: TextCodec) -> Mapping[str, int]:
    vocabulary: Mapping[str, int] = codec.tokenizer.get_vocab(with_added_tokens=True)
    return vocabulary
