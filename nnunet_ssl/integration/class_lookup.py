"""Find nnU-Net classes that other packages registered as entry points."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from nnunet_ssl.errors import BadFile
from nnunet_ssl.integration.torchvision_build import CURE, is_mismatch
from nnunet_ssl.methods import TRAINERS, trainer_names
from nnunet_ssl.nearest import did_you_mean

# The `current_module` nnU-Net searches -> the entry-point group for what it searches there.
GROUPS = {
    "nnunetv2.training.nnUNetTrainer": TRAINERS,
    "nnunetv2.experiment_planning": "nnunetv2.planners",
    "nnunetv2.preprocessing": "nnunetv2.preprocessors",
    "nnunetv2.preprocessing.preprocessors": "nnunetv2.preprocessors",
    "nnunetv2.preprocessing.normalization": "nnunetv2.normalization",
    "nnunetv2.preprocessing.resampling": "nnunetv2.resampling",
    "nnunetv2.imageio": "nnunetv2.imageio",
}

# What plans and dataset.json may name in these places -> the class it must be made of. nnU-Net takes whatever stands in the
# module under that name, the functions and modules it imports included, and calls it.
KINDS = {
    "nnunetv2.preprocessing": ("nnunetv2.preprocessing.preprocessors.default_preprocessor", "DefaultPreprocessor"),
    "nnunetv2.preprocessing.normalization": (
        "nnunetv2.preprocessing.normalization.default_normalization_schemes",
        "ImageNormalization",
    ),
    "nnunetv2.imageio": ("nnunetv2.imageio.base_reader_writer", "BaseReaderWriter"),
    "nnunetv2.utilities.label_handling": ("nnunetv2.utilities.label_handling.label_handling", "LabelManager"),
}
RESAMPLING = "nnunetv2.preprocessing.resampling"
OWN = "SSL"  # how the names of this package begin


def find(
    stock: Callable[..., Any],
    folder: str,
    class_name: str,
    current_module: str | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """What nnU-Net's own search finds; otherwise the entry point of that name; otherwise None, as nnU-Net's search.

    Raises whatever importing the registered class raises, after saying on stderr whose class it is.
    """
    try:
        found = stock(folder, class_name, current_module, *args, **kwargs)
    except RuntimeError as error:
        if is_mismatch(error):
            print(CURE, file=sys.stderr)
        raise
    group = GROUPS.get(current_module or "")
    if found is None:
        registered_one = find_registered(group, class_name) if group is not None else None
        if registered_one is None and group is not None and str(class_name).startswith(OWN):
            # nnU-Net's own error follows, which does not know them.
            print(f"There is no {class_name}.{did_you_mean(class_name, names_of(group))}", file=sys.stderr)
        return registered_one
    require_kind(found, class_name, current_module or "")
    return found


def require_kind(found: Any, name: str, module: str) -> None:
    """Raise BadFile when what nnU-Net found by a name from a file is not of the kind that belongs there."""
    if module == RESAMPLING:
        # Functions have no common base: those defined there, and others that take what resampling is given.
        fits = inspect.isfunction(found) and (
            found.__module__.startswith(module) or "new_shape" in inspect.signature(found).parameters
        )
        expected = "a resampling function"
    elif module in KINDS:
        place, expected = KINDS[module]
        base = getattr(importlib.import_module(place), expected)
        fits = isinstance(found, type) and issubclass(found, base)
    else:
        return
    if not fits:
        raise BadFile(
            f"{str(name)[:100]!r} was named where nnU-Net expects {expected} of {module}, and is something else there. "
            "Name one that nnU-Net or an installed package brings; files of others name what they like."
        )


def find_registered(group: str, name: str) -> Any:
    """The class or function registered as `name` in an entry-point group, or the trainer of a task; None if there is none.

    Raises whatever importing it raises, after saying on stderr whose class it is.
    """
    candidates = registered(group, name)
    if not candidates:
        return made_for_task(name) if group == TRAINERS else None
    entry = candidates[0]
    if len(candidates) > 1:
        described = ", ".join(registered_by(candidate) for candidate in candidates)
        print(f"{name} is registered more than once: {described}. Using the first.", file=sys.stderr)
    try:
        return entry.load()
    except Exception:
        print(f"{name} is registered by {registered_by(entry)}, which cannot be imported:", file=sys.stderr)
        raise


def made_for_task(name: str) -> Any:
    """The pre-training trainer of an installed task, None for other names."""
    if name not in trainer_names():
        return None
    return getattr(importlib.import_module("nnunet_ssl.trainers.pretraining"), name)


def names_of(group: str) -> list[str]:
    """The names of a group, sorted."""
    made = trainer_names() if group == TRAINERS else ()
    return sorted({*(entry.name for entry in registered(group)), *made})


def registered(group: str, name: str | None = None) -> list[EntryPoint]:
    """Entry points of a group in a fixed order; the same one seen through two metadata folders counts once."""
    found = entry_points(group=group) if name is None else entry_points(group=group, name=name)
    return sorted({(e.name, e.value): e for e in found}.values(), key=lambda e: (e.name, e.value))


def registered_by(entry: EntryPoint) -> str:
    """Package and place of an entry point."""
    package = entry.dist.name if entry.dist is not None else "an unknown package"
    return f"{package} ({entry.value})"
