"""Open checkpoints of any origin without ever running code from them."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.checkpoints.diagnosis import checkpoints_near, why_unreadable

RESUME_NAMES = (
    "checkpoint_final.pth",
    "checkpoint_latest.pth",
    "checkpoint_latest_previous.pth",
    "checkpoint_best.pth",
)
WEIGHT_KEYS = ("network_weights", "state_dict", "model_state_dict", "model")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, written or put into a network."""


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of a checkpoint file on the CPU: nnU-Net's, nnssl's, ours, a bare state dict, or a .safetensors file.

    Only tensors, plain Python types and the numpy scalars of stock nnU-Net's log are accepted; nothing else in the file
    is ever unpickled. Raises CheckpointError for a missing, empty, truncated, foreign or forbidden file.
    """
    path = Path(path)
    _check_is_file(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        shape = f" of shape {tuple(content.shape)}" if isinstance(content, Tensor) else ""
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}{shape}, not a checkpoint. Expected a dictionary with the weights "
            f"of a network, as nnU-Net writes it. {checkpoints_near(path)}"
        )
    return dict(content)


def read_latest(
    folder: str | os.PathLike[str], names: Sequence[str] = RESUME_NAMES
) -> tuple[dict[str, Any], Path, list[str]]:
    """First readable checkpoint of `names` in `folder`, its path, and one note for every damaged one skipped.

    Raises CheckpointError when none of them exists or none can be read.
    """
    folder, notes = Path(folder), list[str]()
    present = [folder / name for name in names if (folder / name).exists()]
    for path in present:
        try:
            return read_checkpoint(path), path, notes
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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: {error}. Copy or download it again. {checkpoints_near(path)}"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}. Check its permissions.") from error
    whole_zip = zipfile.is_zipfile(path)
    # Windows cannot replace a file that is still mapped, so the next save would fail there.
    mmap = whole_zip and os.name == "posix"
    try:
        with torch.serialization.safe_globals(_numpy_scalar_types()), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # on pickle protocols and TorchScript: refused below in our words
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises almost anything on cut bytes
        raise CheckpointError(why_unreadable(path, start, whole_zip, error)) from error


def _numpy_scalar_types() -> list[Any]:
    """The numpy names a pickled np.float64 (in stock nnU-Net's log) refers to, under numpy 1 and numpy 2."""
    scalar = np.float64(0).__reduce__()[0]

    def renamed(module: str) -> Callable[..., Any]:
        def build(*args: Any) -> Any:
            return scalar(*args)

        build.__module__, build.__name__, build.__qualname__ = module, "scalar", "scalar"
        return build

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        codes = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"
        dtypes = list({type(np.dtype(code)) for code in codes})
    return [renamed("numpy.core.multiarray"), renamed("numpy._core.multiarray"), np.dtype, *dtypes]
