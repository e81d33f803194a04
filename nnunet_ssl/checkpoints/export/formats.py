"""Checkpoints for people who do not have this package: nnssl's format, and safetensors with JSON."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ssl.checkpoints.export.downstream import check_loads_downstream
from nnunet_ssl.checkpoints.export.portable import ExportOptions, Portable, portable
from nnunet_ssl.checkpoints.export.sidecar import config_of, write_safetensors
from nnunet_ssl.checkpoints.write import save_checkpoint
from nnunet_ssl.errors import CheckpointError, FolderTaken
from nnunet_ssl.files.atomic import write_json

# nnU-Net's development branch downloads exactly the first three from the hub; config.json makes the hub count downloads.
WEIGHTS, ADAPTATION_PLAN, CONFIG, SAFETENSORS = (
    "checkpoint_final.pth",
    "adaptation_plan.json",
    "config.json",
    "model.safetensors",
)
CARD = ("README.md", "progress.png")
Finish = Callable[[Path, Mapping[str, Any]], object]  # adds to a folder that is complete but not in its place yet
OURS = frozenset({WEIGHTS, ADAPTATION_PLAN, CONFIG, SAFETENSORS, *CARD})


def export_nnssl(
    checkpoint: Mapping[str, Any],
    folder: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    finish: Finish | None = None,
) -> Portable:
    """Write `folder`/checkpoint_final.pth, adaptation_plan.json and config.json as published nnssl models have them.

    nnU-Net's development branch, TaWald/nnUNet and nnU-Net's own -pretrained_weights load the file as it is. Primus
    weights are in natural token order (A0, A1, A2): these programs build today's Primus and load without converting,
    although files of nnssl's own EvaMAE family hold the swapped order, for which they were never right. The file says so
    in ssl["token_order"], so that our reader converts neither. SSL3D_classification still flattens (A1, A0, A2): give it
    a file of `token_order="swapped"`. The trainer's name is ours, so a reader that converts nnssl's "Eva" trainers leaves
    it alone. Returns what was written and what was left out. Raises CheckpointError when other programs could not load
    the result, FileExistsError for a folder that is taken.
    """
    made = portable(checkpoint, options)
    check_loads_downstream(made.checkpoint)
    with new_folder(folder, overwrite) as temporary:
        save_checkpoint(made.checkpoint, temporary / WEIGHTS)
        _write_descriptions(made.checkpoint, temporary)
        if finish is not None:
            finish(temporary, made.checkpoint)
    return made


def export_safetensors(
    checkpoint: Mapping[str, Any],
    folder: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    finish: Finish | None = None,
) -> Portable:
    """Write `folder`/model.safetensors, config.json and, where known, adaptation_plan.json.

    The file alone is complete: its metadata hold what config.json shows. `read_checkpoint` gives back the content of
    `export_nnssl`'s file, equal to the bit. Returns what was written and what was left out. Raises FolderTaken for a
    folder that is taken.
    """
    made = portable(checkpoint, options)
    with new_folder(folder, overwrite) as temporary:
        write_safetensors(made.checkpoint, temporary / SAFETENSORS)
        _write_descriptions(made.checkpoint, temporary)
        if finish is not None:
            finish(temporary, made.checkpoint)
    return made


def _write_descriptions(checkpoint: Mapping[str, Any], folder: Path) -> None:
    write_json(config_of(checkpoint), str(folder / CONFIG))
    plan = checkpoint.get("nnssl_adaptation_plan")
    if plan is not None:
        write_json({**plan, "trainer_name": checkpoint["trainer_name"]}, str(folder / ADAPTATION_PLAN))


@contextmanager
def new_folder(
    folder: str | os.PathLike[str], overwrite: bool, is_ours: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and vanishes when not.

    Raises FolderTaken when `folder` holds anything, unless `overwrite` is set and all of it came from an export
    (`is_ours` says so of a path relative to the folder).
    """
    target = Path(folder).expanduser().absolute()
    check_free(target, overwrite, is_ours)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same number
    try:
        temporary.mkdir()
        yield temporary
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except BaseException as error:
        if old.exists() and not target.exists():
            os.replace(old, target)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise CheckpointError(f"{target} cannot be written: {reason}. Choose another folder with -o.") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_free(folder: str | os.PathLike[str], overwrite: bool, is_ours: Callable[[Path], bool] | None = None) -> None:
    """Raise FolderTaken when an export to `folder` would overwrite what must not be; see `new_folder`."""
    target = Path(folder).expanduser().absolute()
    is_ours = is_ours or (lambda path: path.name in OURS and path.parent == Path())
    if target.exists() and not target.is_dir():
        raise FolderTaken(f"{target} is a file. -o wants the name of a folder, which is made.", path=target)
    files = [p.relative_to(target) for p in target.rglob("*") if not p.is_dir()] if target.is_dir() else []
    foreign = [path for path in files if not is_ours(path)]
    if foreign:
        raise FolderTaken(
            f"{target} holds other files ({', '.join(map(str, foreign[:3]))}{', ...' if len(foreign) > 3 else ''}), which an "
            "export never overwrites. Choose another folder with -o."
        )
    if files and not overwrite:
        raise FolderTaken(f"{target} holds an export already. Add --overwrite to replace it, or choose another folder.")
