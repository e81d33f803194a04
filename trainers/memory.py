"""Memory of this process and of those that read its data."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path

import torch

ALLOCATION_FAILED = re.compile("can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and ALLOCATION_FAILED.search(str(error)) is not None


def forget_peaks(device: torch.device) -> None:
    """Start looking for new peaks."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5); Linux only


def peak_on_device(device: torch.device) -> int | None:
    """Bytes that tensors took on a GPU at most, None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def peak_of_this_process() -> int | None:
    """Bytes of memory this process held at most, None where the system does not tell."""
    peak = _kilobytes(Path("/proc/self/status"), ("VmHWM",))
    if peak is not None:
        return peak
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held_by_workers() -> int | None:
    """Bytes that only the child processes hold, without what they share with this one; None where it is not told."""
    amounts = [
        _kilobytes(Path(f"/proc/{child.pid}/smaps_rollup"), ("Private_Clean", "Private_Dirty"))
        for child in active_children()
    ]
    return None if None in amounts else sum(a for a in amounts if a is not None)


def _kilobytes(file: Path, names: tuple[str, ...]) -> int | None:
    """Bytes of the named lines of a file of /proc, None when there is no such file or line."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.split(":")[0] in names]
    return sum(found) if len(found) == len(names) else None
