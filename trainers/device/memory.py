"""Memory of this process and of those that read its data."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path

import torch

# Of the system, of CUDA, and of its libraries: CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED, and since cuDNN 9
# CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED or HOST_ALLOCATION_FAILED.
ALLOCATION_FAILED = re.compile(
    "can't allocate memory|not enough memory|out of memory|STATUS_ALLOC_FAILED|_ALLOCATION_FAILED", re.IGNORECASE
)
# A convolution for which cuDNN has no room to work in, but also one that it does not know at all.
NO_ENGINE = "unable to find an engine to execute this computation"
LITTLE = 0.1  # of a GPU's memory; a convolution asks for less


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if NO_ENGINE in str(error):
        return _gpu_is_full()
    return ALLOCATION_FAILED.search(str(error)) is not None


def _gpu_is_full() -> bool:
    """Whether the present GPU has little left beside tensors; those of a step that failed are still there with its error."""
    if not torch.cuda.is_available():
        return False
    free, total = torch.cuda.mem_get_info()
    kept_for_tensors = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return free + kept_for_tensors < LITTLE * total


def give_back(device: torch.device) -> None:
    """Let go of everything that nobody uses any more, and of what torch keeps of a GPU's memory for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_peaks(device: torch.device) -> None:
    """Start looking for new peaks."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5); Linux only


def peak_on_device(device: torch.device) -> int | None:
    """Bytes that tensors took on a GPU at most, None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def peak_reserved_on_device(device: torch.device) -> int | None:
    """Bytes that torch held of a GPU at most, for tensors and between them, None elsewhere."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


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
    """Bytes that child processes hold beyond what they share with this one, and batches it has not fetched from them yet.

    None where the system does not tell.
    """
    children = [child.pid for child in active_children() if child.pid is not None]
    own = [_kilobytes(Path(f"/proc/{c}/smaps_rollup"), ("Private_Clean", "Private_Dirty")) for c in children]
    mapped = [_kilobytes(Path(f"/proc/{c}/smaps_rollup"), ("Pss_Shmem",)) for c in children]
    if None in own or None in mapped:
        return None
    fetched = shared_by([os.getpid()])
    queued = sum(size for number, size in shared_by(children).items() if number not in fetched)
    return queued + sum(max(0, o - m) for o, m in zip(own, mapped, strict=True) if o is not None and m is not None)


def held_by(processes: Iterable[int]) -> int | None:
    """Bytes that these processes hold, pages they share divided among them; None where the system does not tell.

    Files in shared memory are left out: a queue may hold some that no process has mapped, see `shared_by`.
    """
    found: int | None = None
    for process in processes:
        amount = _kilobytes(Path(f"/proc/{process}/smaps_rollup"), ("Pss_Anon", "Pss_File"))
        if amount is not None:  # else it has ended, or this is not Linux
            found = (found or 0) + amount
    return found


def shared_by(processes: Iterable[int]) -> dict[int, int]:
    """Bytes of every file in shared memory that these processes have open, by its number: batches on their way."""
    found = {}
    for process in processes:
        with suppress(OSError):  # it has ended, or this is not Linux
            for handle in os.scandir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    if os.readlink(handle.path).startswith("/dev/shm/"):
                        status = os.stat(handle.path)
                        found[status.st_ino] = status.st_blocks * 512
    return found


def _kilobytes(file: Path, names: tuple[str, ...]) -> int | None:
    """Bytes of the named lines of a file of /proc, None when there is no such file or line."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.split(":")[0] in names]
    return sum(found) if len(found) == len(names) else None
