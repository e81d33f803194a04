"""Write checkpoints so that a killed run or a full disk never costs the one before."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.checkpoints.read import CheckpointError
from nnunet_ssl.checkpoints.screening.ambiguity import has_table

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STALE_SECONDS = 3600.0  # a temporary file nobody wrote to for this long belongs to a killed run


def save_checkpoint(
    checkpoint: Mapping[str, Any], path: str | os.PathLike[str], *, keep_previous: bool = False
) -> None:
    """Write `checkpoint` so that `path` holds either the old or the new file, whole, at every moment.

    Numpy values become numbers and tensors, devices and paths become strings, so that the file loads with
    weights_only=True. With `keep_previous` the file being replaced stays as `<stem>_previous<suffix>`.
    Raises CheckpointError for content that is not plain, and when the file cannot be written.
    """
    path = Path(path)
    content = to_plain(checkpoint)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        _remove_stale(path)
        _write_and_sync(content, temporary)
        if keep_previous:
            _keep_previous(path)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CheckpointError(_why_unwritable(path, content, error)) from error
        raise


def to_plain(value: Any) -> Any:
    """Copy of a nested structure with only tensors on the CPU and plain Python types; aliased tensors stay aliased.

    Raises CheckpointError naming the place of anything else.
    """
    return _plain(value, "checkpoint", {})


def _plain(value: Any, where: str, seen: dict[tuple[Any, ...], Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return value
    if isinstance(value, Tensor):
        return _plain_tensor(value, seen)
    if isinstance(value, np.generic):
        return _plain(value.item(), where, seen)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.array(value))
    if isinstance(value, (torch.device, os.PathLike)):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(k, where, seen): _plain(v, f"{where}[{k!r}]", seen) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(v, f"{where}[{i}]", seen) for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    for plain_type in (bool, int, float, str):  # subclasses such as IntEnum or np.str_
        if isinstance(value, plain_type):
            return plain_type(value)
    raise CheckpointError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which would not load again without running "
        "code. Expected tensors, numbers, strings, lists, tuples and dictionaries; convert it before saving."
    )


def _plain_tensor(tensor: Tensor, seen: dict[tuple[Any, ...], Tensor]) -> Tensor:
    """The tensor without graph, on the CPU; the same object for every alias, so that the file holds its bytes once."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return tensor.cpu()
    key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
    if key not in seen:
        plain = tensor.cpu()
        if plain.untyped_storage().nbytes() > plain.numel() * plain.element_size():
            plain = plain.clone()  # a view would drag the whole buffer into the file
        seen[key] = plain
    return seen[key]


def _write_and_sync(content: Any, temporary: Path) -> None:
    with temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's zip writer hides the failed write in its own error: ask the file system for the real reason
            raise _os_error_behind(error, temporary.parent, content) or error from error
        file.flush()
        os.fsync(file.fileno())


def _os_error_behind(error: BaseException, folder: Path, content: Any) -> OSError | None:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError):
            return chain
        chain = chain.__cause__ or chain.__context__
    if shutil.disk_usage(folder).free < bytes_needed(content):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def bytes_needed(content: Any) -> int:
    """Bytes of all tensors in a nested structure, aliased storage once."""
    sizes: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            if value.layout == torch.strided:
                sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)

    walk(content)
    return sum(sizes.values())


def _keep_previous(path: Path) -> None:
    if not has_table(path):
        return  # missing, or damaged from outside: not worth replacing an older good one
    previous = path.with_name(f"{path.stem}_previous{path.suffix}")
    link = path.with_name(f".{previous.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(path, link)
        except OSError:  # file systems without hard links
            shutil.copyfile(path, link)
            with link.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(link, previous)
    finally:
        link.unlink(missing_ok=True)  # replacing a file by a link to itself leaves the link behind


def _remove_stale(path: Path) -> None:
    """Remove what killed runs left of earlier attempts to write this checkpoint."""
    for left_over in path.parent.glob(f".{path.stem}*{path.suffix}.*.tmp"):
        with suppress(OSError):
            if time.time() - left_over.stat().st_mtime > STALE_SECONDS:
                left_over.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _why_unwritable(path: Path, content: Any, error: OSError) -> str:
    kept = f"The existing {path.name} is untouched. " if path.exists() else ""
    if error.errno not in FULL_DISK:
        return (
            f"{path} cannot be written: {error.strerror or error}. {kept}Check that its folder exists and is writable."
        )
    needed, free = bytes_needed(content), shutil.disk_usage(path.parent).free
    return (
        f"{path} cannot be written: {error.strerror or 'no space left'}. The folder {path.parent} has {free:,} bytes "
        f"free, the checkpoint needs {needed:,} bytes (and the old file stays until the new one is whole). {kept}"
        "Free space or raise the quota there, or point nnUNet_results to a larger disk, and go on with --c."
    )
