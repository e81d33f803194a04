"""From what a user types after -pretrained_weights to a checkpoint file on this machine."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_ssl.checkpoints.hub.address import SYNTAX, HubAddress, choose_weights, is_weights, parse_address
from nnunet_ssl.checkpoints.hub.download import download, sha256_of
from nnunet_ssl.checkpoints.hub.known_models import KNOWN_MODELS, KnownModel, close_names, find_model
from nnunet_ssl.checkpoints.screening.diagnosis import checkpoints_near
from nnunet_ssl.errors import CheckpointError

IN_CACHE = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})/(?P<file>.+)$")


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from; None where that is not known, or the file was never on the hub.

    `revision` is the full commit, `filename` the file's name in the repository, `sha256` that of its bytes.
    """

    path: str
    sha256: str
    repo_id: str | None = None
    revision: str | None = None
    filename: str | None = None
    licence: str | None = None
    citation: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What is known, as plain data."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        if self.repo_id is None:
            return f"{self.path} (SHA-256 {self.sha256[:12]}...)"
        text = f"{self.repo_id}/{self.filename}, commit {str(self.revision)[:12]}, SHA-256 {self.sha256[:12]}..."
        text += f", licence {self.licence or f'not stated, see its page {page(self.repo_id)}'}"
        return text + (f". Please cite: {self.citation}" if self.citation else "")


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint file on this machine, and where it comes from."""

    path: Path
    origin: Origin


def resolve_source(source: str | os.PathLike[str]) -> LocalCheckpoint:
    """The checkpoint that a path, a folder, a Hugging Face id, URI or URL, or the name of a known model stands for.

    What exists on this machine always wins. In a folder and in a repository that is checkpoint_final.pth, or the only
    .pth, .pt or .safetensors file. Raises CheckpointError saying what was tried and what to type instead.
    """
    text = os.fspath(source).strip()
    if not text:
        raise CheckpointError(f"No checkpoint was given. Expected the path of one, or {SYNTAX}.")
    local = Path(text).expanduser()
    if local.is_dir():
        local = local / choose_weights(_weights_in(local), f"The folder {local}", f"{local}/{{}}")
    if local.is_file():
        return LocalCheckpoint(local, _origin_of_local(local))
    model = find_model(text)
    address = HubAddress(model.repo_id, path=model.filename or "") if model else parse_address(text)
    if address is None:
        raise CheckpointError(_nothing_found(text, local))
    found = download(address)
    model = model or _known(address.repo_id, found.filename)
    origin = Origin(
        str(found.path),
        found.sha256,
        address.repo_id,
        found.revision,
        found.filename,
        found.licence or (model.licence if model else None),
        model.citation if model else None,
    )
    return LocalCheckpoint(found.path, origin)


def page(repo_id: str) -> str:
    """The page of a model on the hub."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo_id}"


def _weights_in(folder: Path) -> list[str]:
    """Files in a model folder of nnU-Net (its folds included), an export, or a snapshot of a repository."""
    files = [f.name for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")]
    return files + [f"{f.parent.name}/{f.name}" for f in folder.glob("fold_*/checkpoint_*.pth")]


def _origin_of_local(path: Path) -> Origin:
    """A file inside huggingface_hub's cache still tells its repository and commit."""
    full = path.absolute()
    inside = IN_CACHE.search(full.as_posix())
    if inside is None:
        return Origin(str(full), sha256_of(path))
    repo_id = f"{inside['org']}/{inside['name']}"
    model = _known(repo_id, inside["file"])
    return Origin(
        str(full),
        sha256_of(path),
        repo_id,
        inside["commit"],
        inside["file"],
        model.licence if model else None,
        model.citation if model else None,
    )


def _known(repo_id: str, filename: str) -> KnownModel | None:
    same = [model for model in KNOWN_MODELS if model.repo_id.lower() == repo_id.lower()]
    return next((model for model in same if model.filename in (None, filename)), None)


def _nothing_found(text: str, local: Path) -> str:
    tried = f"There is no file or folder {text}, and no known model of that name. "
    if is_weights(local.name):
        return tried + checkpoints_near(local)
    return (
        f"{tried}{close_names(text)}Expected the path of a checkpoint or of its folder, a model on the Hugging Face Hub "
        f"({SYNTAX}), or a name that nnUNetv2_pretrain_models lists."
    )
