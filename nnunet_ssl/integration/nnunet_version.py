"""Which nnU-Net is installed: release, commit or development version, and whether it is newer than what was tested.

Imports neither torch nor nnU-Net: `nnunet-ssl doctor` asks also where these cannot be imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from importlib.metadata import Distribution, distribution
from importlib.util import find_spec
from os.path import exists, join
from urllib.parse import unquote, urlparse

TESTED = "2.8.1"  # the newest release that the tests of this package have run with
# Of the development branch, whose version number is that of the last release.
NOT_IN_TESTED = (
    "experiment_planning/like_nnssl.py",
    "training/dataloading/foreground_locations.py",
    "training/nnUNetTrainer/pretraining/pretrainedTrainer.py",
)


def nnunet_version() -> str:
    """E.g. "2.8.1", or "2.8.1, development version (commit 0e495086), newer than tested (2.8.1)".

    Raises importlib.metadata.PackageNotFoundError where nnU-Net is not installed.
    """
    installed = distribution("nnunetv2")
    commit, development = commit_of(installed), is_development()
    newer = development or _numbers(installed.version) > _numbers(TESTED)
    parts = [installed.version]
    if development or commit:
        what = "development version" if development else "not from a package index"
        parts.append(f"{what} (commit {commit[:10]})" if commit else what)
    if newer:
        parts.append(f"newer than tested ({TESTED})")
    return ", ".join(parts)


def is_development() -> bool:
    """Whether the installed nnU-Net has what no tested release has."""
    spec = find_spec("nnunetv2")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return any(exists(join(folder, *file.split("/"))) for folder in folders for file in NOT_IN_TESTED)


def commit_of(installed: Distribution) -> str | None:
    """The commit that was installed: as pip has noted, or of the checkout that is used as it is; None where unknown."""
    try:
        source = json.loads(installed.read_text("direct_url.json") or "{}")
    except json.JSONDecodeError:
        return None
    stated = source.get("vcs_info", {}).get("commit_id")
    if stated:
        return str(stated)
    address = urlparse(source.get("url", ""))
    if address.scheme != "file":
        return None
    folder = unquote(address.path)
    if not os.path.isdir(join(folder, ".git")):
        return None
    try:
        command = ["git", "-C", folder, "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])
