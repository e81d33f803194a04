"""Write checkpoints so that a killed run or a full disk never costs the one before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.checkpoints.screening.ambiguity import has_table
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.files.atomic import atomic_path, atomic_write
from nnunet_ssl.files.unwritable import why_unwritable


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
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
            if keep_previous:
                file.flush()
                os.fsync(file.fileno())  # a disk that is full says so before anything is given up
                _keep_previous(path)
    except OSError as error:
        raise CheckpointError(_why_unwritable(path, content, error)) from error


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
    with suppress(OSError):
        if previous.samefile(path):
            return
    # In the place of the temporary file lies a link: no byte is copied where the file system knows hard links.
    with atomic_path(previous) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _why_unwritable(path: Path, content: Any, error: OSError) -> str:
    kept = f" The existing {path.name} is untouched." if path.exists() else ""
    text = why_unwritable(
        path, error.__cause__ if isinstance(error.__cause__, OSError) else error, bytes_needed(content)
    )
    return f"{text}{kept} Then go on with --c."
