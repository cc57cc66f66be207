"""A second model over the same text that judges what the first one drafts, token by token from left to right.

The guide sees the canvas as its own family is trained to: its attention, its shift, its block grid. A guide that is a
diffusion model is asked exactly: what it thinks of the draft's k-th token is its prediction of that slot in a text that
holds the tokens before it and masks from there on; so there are as many texts as judged slots, in a few passes where the
model takes several at once. A causal guide sees nothing to the right anyway, and needs one text.

Its finished blocks are stored where its own grid agrees with the blocks that are filled; otherwise it computes the
whole visible text every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.attention import EXACT
from dlm_edge.runtime.blocks import Block, Canvas
from dlm_edge.runtime.cache import BlockCache, Cache, CountedModel, NoCache
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.predicting import AT_ONCE, Predictor
from dlm_edge.runtime.samplers.contract import Opinion
from dlm_edge.runtime.scores import Row, Sampling, ScoreReducer, Scores
from dlm_edge.runtime.step_model import StepModel

FIRST_SLOTS = 4  # that are judged in one pass


@dataclass(frozen=True, slots=True)
class GuideModel:
    """State of one sequence of the guide, over the weights that all seats share."""

    model: StepModel
    conventions: Conventions
    stores_keys: bool = True


class Guide:
    """Of one request. Told of every block, as a Cache is."""

    def __init__(
        self,
        guide: GuideModel,
        canvas: Canvas,
        settings: DecodeSettings,
        conventions: Conventions,
        check_cancelled: Callable[[], None],
    ) -> None:
        """`conventions` of the model that drafts."""
        own = guide.conventions
        guide.model.reset(len(canvas.ids))
        self.canvas, self.own_length = canvas, 1 if own.attention == "causal" else own.block_length
        self.is_causal, self.is_full = own.attention == "causal", own.attention == "full"
        self.model = CountedModel(guide.model, canvas, own, EXACT)
        follows = conventions.attention != "full" and own.block_length == settings.block_length
        stores = guide.stores_keys and (self.is_causal or (own.attention == "block_causal" and follows))
        self.cache: Cache = (
            BlockCache(self.model, settings.block_length, settings.prefill_chunk) if stores else NoCache(self.model)
        )
        first_stop = canvas.prompt_len + settings.min_new_tokens
        self.scorer = ScoreReducer(own.mask_id, Sampling(), settings.stop_ids, first_stop)
        self.predictor = Predictor(self.model, self.cache, self.scorer, self.scorer, check_cancelled)

    def prefill(self, end: int) -> None:
        self.cache.prefill(end)

    def start_block(self, block: Block) -> None:
        """Where nothing is stored, with all that the guide's own grid shows it of the text."""
        if isinstance(self.cache, NoCache):
            seen = -(-block.end // self.own_length) * self.own_length
            block = Block(block.start, min(seen, len(self.canvas.ids)), ())
        self.cache.start_block(block)

    def finish_block(self) -> None:
        self.cache.finish_block()

    def opinions(self, draft: Scores, number: int) -> Iterator[Opinion]:
        """On each token of the draft, given those before it; nothing is computed beyond the last one that is asked for,
        but for those of the same pass."""
        slots, end = range(0), len(draft.positions)
        while slots.stop < end:
            self.predictor.check_cancelled()
            slots = range(slots.stop, min(slots.stop + self.slots_at_once(slots.stop), end))
            for slot, row in zip(slots, self.rows(draft, slots), strict=True):
                yield self.opinion(row, int(draft.positions[slot]), int(draft.ids[slot]), number)

    def slots_at_once(self, n_known: int) -> int:
        """As many as are known, so that a draft that ends soon costs little, and a long one few passes."""
        if self.is_causal:
            return len(self.canvas.ids)
        if not self.model.model.batches_copies:
            return 1
        window = self.cache.step_window
        return min(max(n_known, FIRST_SLOTS), max(AT_ONCE // (window.end - window.start), 1))

    def rows(self, draft: Scores, slots: range) -> Sequence[Row]:
        """Logits of some slots of the draft, each in a text that holds the draft before it."""
        asked = [draft.positions[slot : slot + 1] for slot in slots]
        if self.is_causal:
            ids = self.canvas.ids.copy()
            ids[draft.positions] = draft.ids
            return self.predictor.rows_of_fillings([ids], [draft.positions])[0]
        fillings = np.tile(self.canvas.ids, (len(slots), 1))
        for ids, slot in zip(fillings, slots, strict=True):
            ids[draft.positions[:slot]] = draft.ids[:slot]
        return [rows[0] for rows in self.predictor.rows_of_fillings(list(fillings), asked)]

    def opinion(self, row: Row, position: int, token: int, number: int) -> Opinion:
        """Raises E-NUM."""
        scores = self.scorer.reduce([row], np.array([position]), number)
        best, confidence = int(scores.ids[0]), float(scores.confidence[0])
        probability = confidence if token == best else self.scorer.probability(row, position, token, number)
        likelier = int(np.count_nonzero(row > row[token])) if token != best else 0
        return Opinion(best, confidence, probability, likelier)


def check_guide(guide: Conventions, conventions: Conventions, prompt_len: int) -> None:
    """E-PARAM and E-PROMPT for what the guide cannot judge."""
    if guide.mask_id != conventions.mask_id:
        message = f"the guide's mask is token {guide.mask_id}, and the model's is {conventions.mask_id}"
        raise UsageProblem("E-PARAM", message, "use a guide with the same vocabulary")
    if guide.logit_shift and not prompt_len:
        message = "the prompt is empty, and the guide predicts each token from the one before it"
        raise UsageProblem("E-PROMPT", message, "give at least one token")
    if guide.attention == "causal" and not guide.logit_shift:
        message = "a causal guide that predicts the token it sees cannot judge a draft"
        raise UsageProblem("E-PARAM", message, "use a guide that predicts the next token")
