"""Pretext tasks, found by name through the entry-point group `nnunet_ssl.methods`.

Names are all that the commands' help wants to know: torch comes with a task's class, not with this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from nnunet_ssl.errors import NnunetSSLError, SettingsError

if TYPE_CHECKING:
    from nnunet_ssl.methods.base import Method
    from nnunet_ssl.views.spec import Views

GROUP, TRAINERS = "nnunet_ssl.methods", "nnunetv2.trainers"


@lru_cache(maxsize=1)
def method_names() -> tuple[str, ...]:
    """Names of all installed methods, ours and those of other packages."""
    return tuple(sorted({e.name for e in entry_points(group=GROUP)}))


@lru_cache(maxsize=1)
def trainer_names() -> dict[str, str]:
    """{name of its nnU-Net trainer: task} of all installed methods, e.g. {"SSLMAETrainer": "mae"}.

    SSL, the task's name written as its class is, Trainer; or the name of a trainer that somebody registered for it. None of
    them needs to be registered: `nnunet_ssl.trainers.pretraining` makes those that are not.
    """
    by_hand = {entry.name.lower(): entry.name for entry in entry_points(group=TRAINERS)}
    names = {}
    for entry in entry_points(group=GROUP):
        plain, written = entry.name.replace("_", ""), entry.value.rpartition(":")[2]
        if written.lower() != plain.lower():
            written = "".join(part.capitalize() for part in entry.name.split("_"))
        names[by_hand.get(f"ssl{plain}trainer".lower(), f"SSL{written}Trainer")] = entry.name
    return names


def get_method(name: str) -> type[Method]:
    """Class of the method `name`; raises SettingsError listing the known names.

    The import error of a broken third-party method is passed on as it is.
    """
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return entry.load()
    raise SettingsError(f"There is no pretext task {name!r}. Known: {', '.join(method_names())}.", found=name)


def views_of(method: type[Method], config: Any, patch_size: Sequence[int]) -> Views:
    """`method.views`; what that refuses by a ValueError is a SettingsError that names the task."""
    try:
        return method.views(config, patch_size)
    except NnunetSSLError:
        raise
    except ValueError as error:
        raise SettingsError(f"{method.name} with patches of {tuple(patch_size)} voxels: {error}") from error
