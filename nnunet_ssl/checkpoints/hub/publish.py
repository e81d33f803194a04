"""Put an exported model on the Hugging Face Hub: private unless asked otherwise, never over somebody's files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssl.checkpoints.export.private import Scrubber
from nnunet_ssl.checkpoints.hub.address import BARE, HubAddress, is_weights
from nnunet_ssl.checkpoints.hub.errors import explain
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.errors import CheckpointError, RepositoryNotEmptyError
from nnunet_ssl.version import __version__

TEXTS = (".json", ".md", ".txt")
PUBLISHED = (".pth", ".pt", ".safetensors", ".png", *TEXTS)
OF_THE_HUB = (".gitattributes",)  # what a new repository holds by itself


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    overwrite: bool = False,
    token: str | None = None,
    message: str = "Upload a model exported by nnunet_ssl",
) -> str:
    """Upload an export and return its page; creates the repository ORG/NAME where there is none.

    One commit, or nothing at all. Token None is the one of `hf auth login` or HF_TOKEN. Raises RepositoryNotEmptyError
    without `overwrite`, CheckpointError for a folder that holds anything but an export, for content that tells about
    this machine or its patients, for a public repository where a private one was asked for, and for refused access.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError

    if BARE.fullmatch(repo_id) is None or "@" in repo_id:
        raise CheckpointError(f"{repo_id!r} is no name of a repository. Expected ORG/NAME or USER/NAME.")
    folder = Path(folder)
    files = files_of_export(folder)
    refuse_private_content(files, folder)
    api = HfApi(token=token, library_name="nnunet_ssl", library_version=__version__)
    try:
        try:
            info = api.model_info(repo_id)
        except RepositoryNotFoundError:  # a private one of somebody else looks the same; creating it then fails
            api.create_repo(repo_id, private=private)
            info = api.model_info(repo_id)
        _refuse(repo_id, info, private, overwrite)
        api.create_commit(
            repo_id,
            [CommitOperationAdd(f.relative_to(folder).as_posix(), str(f)) for f in files],
            commit_message=message,
            parent_commit=info.sha,  # somebody else's upload in between is a conflict, not lost
        )
    except (OSError, ValueError, RuntimeError, HfHubHTTPError.__bases__[0]) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"Nothing was published. {why_refused(error, repo_id)}") from error
    return f"{api.endpoint}/{repo_id}"


def why_refused(error: BaseException, repo_id: str) -> str:
    """What to do about an upload that failed."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"Access to {repo_id} was refused ({status}). Log in with `hf auth login` and a token that may write (or set "
            f"HF_TOKEN), and check that you belong to {repo_id.partition('/')[0]}."
        )
    if status in (409, 412):
        return f"{repo_id} changed during the upload, or its name is taken. Look at it, and try again."
    return explain(error, HubAddress(repo_id))


def files_of_export(folder: Path) -> list[Path]:
    """The files to publish, sorted; raises CheckpointError when the folder holds none, or what an export never has."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder. Expected what nnUNetv2_pretrain_export wrote.")
    files = sorted(f for f in folder.rglob("*") if not f.is_dir() or f.is_symlink())
    strange = [f for f in files if f.is_symlink() or f.name.startswith(".") or f.suffix.lower() not in PUBLISHED]
    if strange:
        raise CheckpointError(
            f"{folder} holds what no export has: {_names(strange, folder)}. Expected {', '.join(PUBLISHED)} files. "
            "Move it away, or export into a new folder."
        )
    if not any(is_weights(f.name) for f in files):
        raise CheckpointError(f"{folder} holds no weights. Export first: nnUNetv2_pretrain_export CHECKPOINT.")
    return files


def refuse_private_content(files: Iterable[Path], folder: Path) -> None:
    """Raise CheckpointError naming every place that holds a path of this machine or the list of a data set's cases."""
    found = [f"{f.relative_to(folder)}: {place}" for f in files for place in private_places(f)]
    if found:
        shown = "\n".join(f"  {line}" for line in found[:20])
        raise CheckpointError(
            f"{folder} is not for the public, it names paths or cases of this machine:\n{shown}\nNothing was uploaded. "
            "nnUNetv2_pretrain_export takes such things out: publish what it writes."
        )


def private_places(file: Path) -> list[str]:
    """Places in a checkpoint, JSON or text file that hold an absolute path or a table of cases."""
    scrub = Scrubber()
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            content: Any = {"metadata": opened.metadata() or {}}
    elif is_weights(file.name):
        content = read_checkpoint(file)
    elif file.suffix == ".json":
        content = json.loads(file.read_text(encoding="utf-8"))
    elif file.suffix in TEXTS:
        content = {f"line {n}": line for n, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)}
    else:
        return []
    scrub(content)
    return scrub.removed + _tables_of_cases(content, "")


def _tables_of_cases(content: Any, where: str) -> list[str]:
    """nnU-Net's dataset.json names every case under "dataset", and its splits under "train" and "val"."""
    if isinstance(content, list):
        return [place for n, item in enumerate(content) for place in _tables_of_cases(item, f"{where}[{n}]")]
    if not isinstance(content, dict):
        return []
    found = []
    for key, value in content.items():
        place = f"{where}.{key}" if where else str(key)
        if (key == "dataset" and isinstance(value, dict)) or (key in ("train", "val") and isinstance(value, list)):
            found.append(place)
        elif isinstance(value, (dict, list)):
            found += _tables_of_cases(value, place)
    return found


def _refuse(repo_id: str, info: Any, private: bool, overwrite: bool) -> None:
    if private and not info.private:
        raise CheckpointError(
            f"{repo_id} exists and is public, and a private upload was asked for. Nothing was uploaded. Choose another "
            "name, make it private in its settings, or ask for a public upload (--public)."
        )
    there = sorted(s.rfilename for s in info.siblings or () if s.rfilename not in OF_THE_HUB)
    if there and not overwrite:
        raise RepositoryNotEmptyError(_refusal(repo_id, there), found=there)


def _names(files: list[Path], folder: Path) -> str:
    return ", ".join(f.relative_to(folder).as_posix() for f in files[:8]) + (" ..." if len(files) > 8 else "")


def _refusal(repo_id: str, files: Sequence[str]) -> str:
    shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    return (
        f"{repo_id} already holds {shown}. Nothing was uploaded. Choose another name, or ask to overwrite "
        "(--overwrite): files of equal name are replaced (old versions stay in the history), others stay."
    )
