"""The lowest entropy first, by Dream's timetable (Ye et al. 2025, arXiv 2508.15487)."""

from __future__ import annotations

from dlm_edge.runtime.samplers.timetable import ranked_sampler

SAMPLER = ranked_sampler("entropy", lambda scores: -scores.entropy)
