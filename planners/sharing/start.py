"""Where preprocessing begins: the folder holds nothing but whole cases, made from what is there now with these settings."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from glob import escape, glob
from os.path import isdir, isfile, join
from typing import Any

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.files.participants import certainly_living, living
from nnunet_ssl.planners.sharing.changes import Changes, compare
from nnunet_ssl.planners.sharing.distribution import step_of, try_again
from nnunet_ssl.planners.sharing.finished import SETTINGS, STATE, discard, finished_cases, unfinished_cases
from nnunet_ssl.planners.sharing.made_from import needs_joining, read_origins, write_origins


def folder_lock(folder: str) -> Lock:
    """Who holds it may remove cases from a folder of preprocessed ones."""
    return Lock(f"{folder}.lock", "preparing the folder of preprocessed images")


def stored_settings(folder: str) -> dict[str, Any]:
    """The settings that the cases of a folder were made with; empty where nothing says it."""
    path = join(folder, STATE, SETTINGS)
    if not isfile(path):
        return {}
    try:
        content = read_json(path)
    except ValueError:
        return {}  # torn
    return content if isinstance(content, dict) else {}


def differing(settings: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """The names of the settings that are not what they were."""
    return [key for key in dict.fromkeys([*settings, *stored]) if settings.get(key) != stored.get(key)]


def start_or_continue(
    folder: str, settings: Mapping[str, Any], cases: Mapping[str, Mapping[str, Any]], name: str
) -> Changes:
    """Prepare `folder` for `cases` of the data set `name`, to be made with `settings`, and say what had to go.

    Cases made with other settings, from files that have changed, or of images that are gone are removed. Raises CorpusError
    when another process is making cases with other settings there.
    """
    with folder_lock(folder).waiting():
        for remains in glob(f"{escape(folder)}.removed-*"):  # of a process that was killed while it removed them
            shutil.rmtree(remains)
        state, changes = join(folder, STATE), Changes()
        others = living(state)
        if isdir(folder):
            previous = stored_settings(folder)
            changed = differing(settings, previous)
            if changed and others and certainly_living(state):
                raise CorpusError(
                    f"Another process ({others[0]}) is preprocessing into {folder} with other settings "
                    f"({', '.join(changed)}). Let it finish or stop it, or give these plans another name."
                )
            if changed and finished_cases(folder):
                why = f"{', '.join(changed)} changed" if previous else "nothing says which settings they were made with"
                print(f"{name}: the cases in {folder} are made anew: {why}.")
            if changed:
                remove_folder(folder)
                try_again(os.path.dirname(folder), step_of(folder))
            else:
                changes = compare(folder, cases)
                print("".join(f"{line}\n" for line in changes.lines(name)), end="", flush=True)
                discard(folder, [*changes.changed, *changes.gone])
                if not others:
                    discard(folder, unfinished_cases(folder))
        os.makedirs(state, exist_ok=True)
        if not others and changes.to_write:
            write_origins(state, changes.origins)
        if stored_settings(folder) != settings:
            write_json(dict(settings), join(state, SETTINGS))
    return changes


def settle(folder: str) -> None:
    """Join what all processes noted about the cases of a folder, if this one is the last."""
    state = join(folder, STATE)
    with folder_lock(folder).waiting():
        if not living(state) and needs_joining(state):
            finished, known = finished_cases(folder), read_origins(state)
            write_origins(state, {case: origin for case, origin in known.items() if case in finished})


def remove_folder(folder: str) -> None:
    """Remove a folder of preprocessed cases; whoever holds its lock."""
    # Renamed first: a process killed while removing leaves no half of a folder behind under its name.
    old = f"{folder}.removed-{secrets.token_hex(4)}"
    os.rename(folder, old)
    shutil.rmtree(old)
