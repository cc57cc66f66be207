"""The likeliest tokens first, by Dream's timetable (Ye et al. 2025, arXiv 2508.15487; MaskGIT, arXiv 2202.04200).

Without `steps` it is `static` with one token per step. Dream's code takes the confidence after temperature and top-p,
which raise it; here it is that of the whole distribution.
"""

from __future__ import annotations

from dlm_edge.runtime.samplers.timetable import ranked_sampler

SAMPLER = ranked_sampler("maskgit_plus", lambda scores: scores.confidence)
