"""Whether the kernel's file locks hold on every machine that sees a folder, as far as its mount says."""

from __future__ import annotations

import os
from functools import lru_cache

from nnunet_ssl.errors import SettingsError

VARIABLE = "NNUNET_SSL_LOCKS"
KERNEL, HEARTBEAT = "kernel", "heartbeat"
# flock succeeds there and is known to this machine alone, or may be: the mount does not tell.
LOCAL_TYPES = ("beegfs", "gpfs", "9p", "afpfs", "vboxsf", "fuse.")


def locks_reach_everyone(folder: str) -> bool:
    """False where two machines could both get a kernel lock on the same file in `folder`.

    NNUNET_SSL_LOCKS=kernel or =heartbeat decides it for all folders. Raises SettingsError for another value.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", KERNEL, HEARTBEAT):
        raise SettingsError(
            f"{VARIABLE} is {wanted!r}; expected {KERNEL} or {HEARTBEAT}. Unset it to have it found out."
        )
    return wanted == KERNEL if wanted else _by_mount(os.stat(folder).st_dev, os.path.realpath(folder))


@lru_cache(maxsize=64)
def _by_mount(_: int, folder: str) -> bool:
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return True  # not Linux; where the kernel has no locks, taking one says so
    return trustworthy(mounts, folder)


def trustworthy(mounts: list[list[str]], folder: str) -> bool:
    """Whether locks can be trusted in `folder`, by the fields of /proc/self/mounts: source, mount point, type, options."""
    best: list[str] = []
    for fields in mounts:
        point = fields[1].replace("\\040", " ").rstrip("/")
        if (folder == point or folder.startswith(f"{point}/")) and (not best or len(fields[1]) >= len(best[1])):
            best = fields  # of several on one point the last lies on top
    if not best:
        return True
    kind, options = best[2], best[3].split(",")
    if kind.startswith("nfs"):
        return not {"nolock", "local_lock=flock", "local_lock=all"} & set(options)
    if kind == "lustre":
        return "flock" in options
    return not kind.startswith(LOCAL_TYPES)
