"""States on which a job measures what it lost: other texts than those of the calibration, or at least other masks."""

from __future__ import annotations

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.quant.calibration import chat_renderer, read_tokenizer
from dlm_edge.quant.calibration_text import default_rows, limited, read_rows
from dlm_edge.quant.plan import QuantizeOptions
from dlm_edge.quant.states import Batch, StateConfig, make_states

TOKENS = 4096
SEED = 2_000_000_000  # calibration seeds are small numbers


def held_out_states(source: Checkpoint, options: QuantizeOptions) -> list[Batch]:
    """A few thousand tokens of `forward` states. With data of the user's the rows are among those calibrated on, under
    other masks: they may all be needed."""
    tokenizer = read_tokenizer(source)
    if options.calib_data is None:
        data = default_rows(tokenizer, source.spec, TOKENS, SEED)
    else:
        whole = read_rows(options.calib_data, tokenizer, source.spec, chat_renderer(source, tokenizer))
        data = limited(whole, TOKENS, SEED)
    return make_states(data.rows, source.spec.conventions, StateConfig(mode="forward"), SEED)
