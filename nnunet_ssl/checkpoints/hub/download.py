"""Fetch a checkpoint from the Hugging Face Hub, or find it in the cache, and check its bytes.

Cache, token, offline mode and mirror are huggingface_hub's own: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nnunet_ssl.checkpoints.hub.address import WEIGHT_SUFFIXES, HubAddress, choose_weights, is_weights
from nnunet_ssl.checkpoints.hub.errors import explain
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.version import __version__

COMPANIONS = ("adaptation_plan.json", "config.json")  # nnssl's convention; the hub counts downloads by config.json
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Download:
    """A file of the hub on this machine: its path, commit, name in the repository, checksum, the card's licence."""

    path: Path
    revision: str
    filename: str
    sha256: str
    licence: str | None = None


def download(address: HubAddress) -> Download:
    """The checkpoint at an address, from the hub or, where that cannot be reached, from the cache.

    Nothing but weights and JSON files is ever downloaded. Raises CheckpointError saying what to do when there is no
    such model, no access, no network and no cached copy, more than one checkpoint, or bytes with a wrong checksum.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import HfHubHTTPError, OfflineModeIsEnabled

    # base class of what the HTTP library in use raises; HfHubHTTPError and offline mode are OSErrors besides
    failures = (OSError, ValueError, HfHubHTTPError.__bases__[0])
    try:
        info = HfApi(library_name="nnunet_ssl", library_version=__version__).model_info(
            address.repo_id,
            revision=address.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except failures as error:
        cached = find_cached(address)
        if cached is None:
            raise CheckpointError(explain(error, address)) from None
        if not isinstance(error, OfflineModeIsEnabled):
            print(f"{explain(error, address)}\nUsing the copy in the cache, commit {cached.revision}.", file=sys.stderr)
        return cached
    sizes = {str(sibling.rfilename): sibling for sibling in info.siblings or ()}
    filename = choose_file(address, sizes)
    try:
        path = _fetch(address, filename)
        folder = PurePosixPath(filename).parent
        for name in (*COMPANIONS, f"{PurePosixPath(filename).stem}.json"):
            if str(folder / name) in sizes:
                _fetch(address, str(folder / name))
        revision = commit_of(path)
        expected = _promised_sha256(sizes[filename]) if revision == info.sha else None
        sha256 = sha256_of(path)
        if expected not in (None, sha256):  # a damaged cache: once more, and then it is the hub's own fault
            sha256 = sha256_of(_fetch(address, filename, force_download=True))
    except failures as error:
        raise CheckpointError(explain(error, address.file(filename))) from None
    if expected not in (None, sha256):
        raise CheckpointError(_wrong_bytes(path, sha256, str(expected)))
    card = getattr(info, "card_data", None)
    return Download(path, revision, filename, sha256, getattr(card, "license", None))


def choose_file(address: HubAddress, names: Iterable[str]) -> str:
    """The file an address means among those of its repository; raises CheckpointError when that is not clear."""
    names = list(names)
    if is_weights(address.path):
        if address.path in names:
            return address.path
        weights = ", ".join(sorted(filter(is_weights, names))[:10]) or "no checkpoints"
        raise CheckpointError(f"{address.repo_id} holds no file {address.path}. It holds {weights}.")
    inside = f"{address.path}/" if address.path else ""
    if PurePosixPath(address.path).suffix and address.path in names:
        raise CheckpointError(f"{address} is no checkpoint: expected a {', '.join(WEIGHT_SUFFIXES)} file.")
    within = [name.removeprefix(inside) for name in names if name.startswith(inside)]
    return inside + choose_weights(within, str(address), str(address.file(f"{inside}{{}}")))


def find_cached(address: HubAddress) -> Download | None:
    """The checkpoint as an earlier download left it in huggingface_hub's cache; raises CheckpointError when damaged."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.utils import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    wanted = address.revision or "main"
    for repository in repositories:
        if (repository.repo_id, repository.repo_type) != (address.repo_id, "model"):
            continue
        for revision in repository.revisions:
            if wanted not in revision.refs and not (len(wanted) >= 7 and revision.commit_hash.startswith(wanted)):
                continue
            files = {f.file_path.relative_to(revision.snapshot_path).as_posix(): f for f in revision.files}
            missing = address.path not in files if is_weights(address.path) else not any(map(is_weights, files))
            if missing:
                continue
            filename = choose_file(address, files)
            path, blob = files[filename].file_path, files[filename].blob_path.name
            sha256 = sha256_of(path)
            if SHA256.fullmatch(blob) and blob != sha256:
                raise CheckpointError(_wrong_bytes(path, sha256, blob))
            return Download(path, revision.commit_hash, filename, sha256)
    return None


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def commit_of(path: Path) -> str:
    """The commit a file in huggingface_hub's cache belongs to: .../snapshots/COMMIT/file."""
    parts = path.parts
    return parts[len(parts) - 1 - parts[::-1].index("snapshots") + 1]


def _fetch(address: HubAddress, filename: str, force_download: bool = False) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            address.repo_id,
            filename,
            revision=address.revision,
            force_download=force_download,
            library_name="nnunet_ssl",
            library_version=__version__,
        )
    )


def _promised_sha256(sibling: Any) -> str | None:
    """What the hub says a large file's checksum is; small files are plain git objects without one."""
    return getattr(sibling.lfs, "sha256", None)


def _wrong_bytes(path: Path, found: str, expected: str) -> str:
    return (
        f"{path} has SHA-256 {found}, the hub promises {expected}: it is damaged, or was changed on its way. "
        f"Delete {path.resolve()} and try again; if that does not help, report it on the model's page."
    )
