"""How much memory this process took at most, and how much the machine has to give."""

from __future__ import annotations

import os
import sys


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far; 0 where the system does not tell (Windows)."""
    # Linux keeps getrusage's maximum across exec: a process started by a large one would report its parent's.
    own = _proc_bytes("/proc/self/status", "VmHWM:")
    if own is not None:
        return own
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int:
    """Resident size of this process now; 0 where the system does not tell (only Linux does)."""
    return _proc_bytes("/proc/self/status", "VmRSS:") or 0


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not tell."""
    free = _proc_bytes("/proc/meminfo", "MemAvailable:")
    if free is not None:
        return free
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _proc_bytes(path: str, key: str) -> int | None:
    """A size in kB from one of Linux' text files; None where there is no such file or line."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(key):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
