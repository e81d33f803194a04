"""Open checkpoints of any origin without ever running code from them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl.checkpoints.screening.container import check_safetensors, check_torch, is_safetensors, is_zip
from nnunet_ssl.checkpoints.screening.content import why_refused
from nnunet_ssl.checkpoints.screening.diagnosis import checkpoints_near, why_not_opened, why_unreadable
from nnunet_ssl.checkpoints.screening.numpy_scalars import safe_numpy_scalars
from nnunet_ssl.checkpoints.screening.pickle_screen import DamagedError, ScreenError
from nnunet_ssl.errors import CheckpointError

RESUME_NAMES = (
    "checkpoint_final.pth",
    "checkpoint_latest.pth",
    "checkpoint_latest_previous.pth",
    "checkpoint_best.pth",
)
WEIGHT_KEYS = ("network_weights", "state_dict", "model_state_dict", "model")
LONGEST_NAME = 500  # characters in the name of a tensor


def read_checkpoint(path: str | os.PathLike[str], *, mapped: bool = True) -> dict[str, Any]:
    """Content of a checkpoint file on the CPU: nnU-Net's, nnssl's, ours, a bare state dict, or a .safetensors file.

    The format is told by the content, not by the name. Only tensors, plain Python types and the numpy scalars of stock
    nnU-Net's log are accepted; nothing else in the file is ever unpickled, nothing is imported, nothing written, and
    nothing is allocated that the file does not hold. With `mapped`, and where the system allows it, the tensors stay on the
    disk until they are used: do not change the file meanwhile. Raises CheckpointError for a missing, empty, truncated, foreign or
    forbidden file.
    """
    path = Path(path)
    _check_is_file(path)
    content = _open(path, mapped)
    if not isinstance(content, dict):
        shape = f" of shape {tuple(content.shape)}" if isinstance(content, Tensor) else ""
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}{shape}, not a checkpoint. Expected a dictionary with the weights "
            f"of a network, as nnU-Net writes it. {checkpoints_near(path)}"
        )
    return dict(dict.items(content))


def _open(path: Path, mapped: bool) -> Any:
    try:
        size, safetensors = path.stat().st_size, is_safetensors(path) or path.suffix == ".safetensors"
        if safetensors and is_safetensors(path):
            check_safetensors(path)
        else:
            check_torch(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}. Check its permissions.") from error
    except ScreenError as refusal:
        raise CheckpointError(why_not_opened(path, str(refusal), refusal.forbidden)) from refusal
    except DamagedError as damage:
        raise CheckpointError(why_unreadable(path, damage)) from damage
    content = _read_safetensors(path) if safetensors else _read_torch(path, mapped)
    reason = why_refused(content, size)
    if reason:
        raise CheckpointError(why_not_opened(path, f"cannot be a checkpoint: {reason}"))
    return content


def read_latest(
    folder: str | os.PathLike[str], names: Sequence[str] = RESUME_NAMES, *, mapped: bool = True
) -> tuple[dict[str, Any], Path, list[str]]:
    """First readable checkpoint of `names` in `folder`, its path, and one note for every damaged one skipped.

    mapped: as in `read_checkpoint`.
    Raises CheckpointError when none of them exists or none can be read.
    """
    folder, notes = Path(folder), list[str]()
    present = [folder / name for name in names if (folder / name).exists()]
    for path in present:
        try:
            return read_checkpoint(path, mapped=mapped), path, notes
        except CheckpointError as error:
            notes.append(f"Skipped {path.name}: {error}")
    if present:
        raise CheckpointError(f"No checkpoint in {folder} can be read.\n" + "\n".join(notes))
    raise CheckpointError(f"{folder} holds none of {', '.join(names)}. {checkpoints_near(folder / names[0])}")


def network_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's state dict within a checkpoint of any format, without `module.` and `_orig_mod.` (DDP, compile).

    Raises CheckpointError when the checkpoint holds no state dict.
    """
    found = next((checkpoint[k] for k in WEIGHT_KEYS if isinstance(checkpoint.get(k), Mapping)), checkpoint)
    too_long = next((k for k in found if isinstance(k, str) and len(k) > LONGEST_NAME), None)
    if too_long is not None:
        raise CheckpointError(
            f"The checkpoint names a tensor with {len(too_long):,} characters, {too_long[:40]}... Expected the names of "
            f"a network's parameters, of at most {LONGEST_NAME}."
        )
    weights = {_bare_name(k): v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not weights or (found is checkpoint and len(weights) < len(checkpoint)):
        raise CheckpointError(
            f"The checkpoint holds no network weights. Expected one of {', '.join(WEIGHT_KEYS)}, or nothing but "
            f"tensors; found {', '.join(map(str, list(checkpoint)[:12])) or 'nothing'}."
        )
    return weights


def _bare_name(name: str) -> str:
    name = ".".join(part for part in name.split(".") if part != "_orig_mod")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a checkpoint file. {checkpoints_near(path / '_')}")
    if not path.exists():
        raise CheckpointError(f"There is no file {path}. {checkpoints_near(path)}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: its writing was interrupted. {checkpoints_near(path)}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    from nnunet_ssl.checkpoints.export.sidecar import restore

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        return restore(load_file(path, device="cpu"), metadata, path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: {error}. Copy or download it again. {checkpoints_near(path)}"
        ) from error


def _read_torch(path: Path, mapped: bool) -> Any:
    # Windows cannot replace a file that is still mapped, so the next save would fail there.
    mmap = mapped and is_zip(path) and os.name == "posix"
    try:
        with torch.serialization.safe_globals(safe_numpy_scalars()), warnings.catch_warnings():
            # on pickle protocols and TorchScript: refused below in our words
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises almost anything on cut bytes
        raise CheckpointError(why_unreadable(path, error)) from error
