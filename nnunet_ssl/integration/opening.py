"""What nnU-Net opens with `torch.load` is read by our reader first, which runs nothing of a file.

nnU-Net unpickles checkpoints with weights_only=False. In its modules that do so (`OPENERS` in nnunet_ssl/_autoload.py) `load`
here stands in the place of `torch.load`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnunet_ssl._autoload import OPENERS, replace
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.class_lookup import find_registered

WEIGHTS = "nnunetv2.run.load_pretrained_weights"  # takes the weights of any file, a pre-training's above all
SWITCH = "NNUNET_SSL_REFUSE_UNSAFE"  # set to 1: nothing is ever unpickled unseen, stock trainers' files included
_warned = set[str]()


class Opened(str):
    """A checkpoint that was read already, in the shape of the path nnU-Net's functions ask for and print.

    nnU-Net never gets a foreign path: another reader, or the same one a moment later, could see another file.
    """

    checkpoint: dict[str, Any]

    def __new__(cls, path: str | os.PathLike[str], checkpoint: Mapping[str, Any] | None = None) -> Opened:
        """`checkpoint`, or what `path` holds; raises CheckpointError where that is not data alone."""
        for module in filter(None, map(sys.modules.get, OPENERS)):
            replace(module)  # done long ago, but the promise hangs on it
        opened = super().__new__(cls, os.fspath(path))
        # nnU-Net writes in place, so nothing may stay mapped to the file
        opened.checkpoint = read_checkpoint(path, mapped=False) if checkpoint is None else dict(checkpoint)
        return opened


def load(file: Any, *args: Any, opener: str = "", **kwargs: Any) -> Any:
    """`torch.load` of nnU-Net's module `opener`: what our reader reads, else, for its own trainers' files, what nnU-Net would do.

    Raises CheckpointError for a file that holds more than data where one of our trainers would open it, or where the
    environment variable NNUNET_SSL_REFUSE_UNSAFE is set.
    """
    if isinstance(file, Opened):
        return file.checkpoint
    if not isinstance(file, (str, os.PathLike)) or not os.path.isfile(file):
        return torch.load(file, *args, **kwargs)  # nnU-Net's own objects, and its own errors
    try:
        checkpoint = read_checkpoint(file, mapped=False)
    except CheckpointError as error:
        if refuses_unsafe() or _is_of_ours(Path(file)):
            raise
        warn_once(f"nnU-Net unpickles {file}, which holds more than data and can run code ({error})")
        return torch.load(file, *args, **kwargs)
    if opener != WEIGHTS:
        _refuse_pretraining(checkpoint, file)
    return checkpoint


def _refuse_pretraining(checkpoint: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
    """Raise CheckpointError where nnU-Net would predict with, or go on from, a pre-training: ours never come this way."""
    trainer = find_registered("nnunetv2.trainers", str(checkpoint.get("trainer_name")))
    if "ssl" in checkpoint and hasattr(trainer, "method_name"):
        path = shlex.quote(os.fspath(file))
        raise CheckpointError(
            f"{file} is a pre-training ({trainer.__name__}), which has learned no labels and "
            "segments nothing. Fine-tune it first, and predict with the result: "
            f"nnUNetv2_train DATASET 3d_fullres 0 -tr SSLFinetuneTrainer -pretrained_weights {path}"
        )


def refuses_unsafe() -> bool:
    """Whether the user asked that nothing of a file is run or imported, whoever opens it."""
    return os.environ.get(SWITCH, "").lower() in ("1", "true", "t", "yes")


def _is_of_ours(path: Path) -> bool:
    """Whether a file lies in the model folder TRAINER__PLANS__CONFIGURATION of a trainer that is built on ours."""
    trainer = find_registered("nnunetv2.trainers", path.absolute().parent.parent.name.split("__")[0])
    return any(base.__module__.startswith("nnunet_ssl.") for base in getattr(trainer, "__mro__", ()))


def warn_once(text: str) -> None:
    """Say once per process, and per kind of warning, what nnU-Net is about to do with a file."""
    kind = " ".join(text.split()[:2])
    if kind not in _warned:
        _warned.add(kind)
        print(f"WARNING: {text} Do so only with files you trust; {SWITCH}=1 refuses them.", file=sys.stderr)
