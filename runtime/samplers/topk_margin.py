"""The widest gap between the two likeliest tokens first, by Dream's timetable (Ye et al. 2025, arXiv 2508.15487).

The measure is that of Kim et al. 2025, arXiv 2502.06768, section 4.
"""

from __future__ import annotations

from dlm_edge.runtime.samplers.timetable import ranked_sampler

SAMPLER = ranked_sampler("topk_margin", lambda scores: scores.top1_prob - scores.top2_prob)
