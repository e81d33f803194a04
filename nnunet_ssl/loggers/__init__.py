"""Where a run can be followed from elsewhere: one file per service.

They are found by name through the entry-point group `nnunet_ssl.loggers`.

Weights & Biases is nnU-Net's own logger; it is chosen by the same names and gets the same pictures (`integration/logger.py`).
No package of a service is imported before that service is asked for.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import entry_points
from shlex import quote

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.loggers.base import RunLogger
from nnunet_ssl.nearest import did_you_mean

GROUP = "nnunet_ssl.loggers"
WANDB = "wandb"
CHOSEN, PICTURES = "NNUNET_SSL_LOGGERS", "NNUNET_SSL_LOG_PICTURES"


def logger_names() -> tuple[str, ...]:
    """Names of all installed loggers, ours, those of other packages, and nnU-Net's own."""
    return tuple(sorted({WANDB, *(entry.name for entry in entry_points(group=GROUP))}))


def chosen_loggers() -> tuple[str, ...]:
    """The names in NNUNET_SSL_LOGGERS, between commas or spaces; raises SettingsError for one that there is not."""
    names = tuple(dict.fromkeys(os.environ.get(CHOSEN, "").replace(",", " ").split()))
    known = logger_names()
    for name in names:
        if name not in known:
            raise SettingsError(
                f"{CHOSEN} names {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.", found=name
            )
    return names


def pictures_may_leave() -> bool:
    """Whether pictures go to services outside of the run's folder as well: NNUNET_SSL_LOG_PICTURES=1."""
    return os.environ.get(PICTURES, "0").lower() in ("1", "true")


def require_loggers() -> None:
    """Raise SettingsError where a chosen logger does not exist or its package is missing: before hours go into anything."""
    for name in chosen_loggers():
        get_logger(name)


def get_logger(name: str) -> type[RunLogger] | None:
    """The class of a logger by its name, None for nnU-Net's own; raises SettingsError where its service's package is missing."""
    try:
        if name == WANDB:
            import_module(WANDB)
            return None
        return next(entry for entry in entry_points(group=GROUP) if entry.name == name).load()
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"The logger {name} needs the package {error.name}, which is not installed. Type: pip install {quote(name)}",
            found=name,
        ) from error
