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

GROUP = "nnunet_ssl.methods"


@lru_cache(maxsize=1)
def method_names() -> tuple[str, ...]:
    """Names of all installed methods, ours and those of other packages."""
    return tuple(sorted({e.name for e in entry_points(group=GROUP)}))


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
