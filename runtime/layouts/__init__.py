"""How the cache of a sequence lies in memory: keys and values, or what they are computed from, exact or quantized."""

from dlm_edge.runtime.layouts.layout import CacheShape, Layout, LayoutDescription, copy_state, truncate_together
from dlm_edge.runtime.layouts.page_bounds import PageBounds
from dlm_edge.runtime.layouts.table import (
    LAYOUTS,
    bytes_per_token,
    default_group,
    fitting_layout,
    layout_kind,
    open_layout,
)
from dlm_edge.runtime.layouts.x_latents import ToLatent

__all__ = [
    "LAYOUTS",
    "CacheShape",
    "Layout",
    "LayoutDescription",
    "PageBounds",
    "ToLatent",
    "bytes_per_token",
    "copy_state",
    "default_group",
    "fitting_layout",
    "layout_kind",
    "open_layout",
    "truncate_together",
]
