"""Which function resamples: ours where it does what the plans ask nnU-Net's for, and what nnU-Net cannot do either."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from inspect import signature
from typing import Any

from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name

from nnunet_ssl.planners.preprocessing.resampling import TIEBREAKS, resample

TIEBREAK = "seg_tiebreak"  # an argument of nnU-Net's functions in its development branch, not in 2.8


def faster(function: Callable[..., Any]) -> Callable[..., Any]:
    """`resample` in place of nnU-Net's default resampling function with the same arguments; any other as it is.

    Arguments that `resample` does not know go to nnU-Net's function; `unknown_arguments` names those it does not know either.
    """
    inner, keywords = (function.func, function.keywords) if isinstance(function, partial) else (function, {})
    if _replaces(inner, keywords):
        return partial(resample, **keywords)
    if TIEBREAK in keywords and _needs_no_tiebreak(inner, keywords):
        return partial(inner, **{name: value for name, value in keywords.items() if name != TIEBREAK})
    return function


def _replaces(inner: Callable[..., Any], keywords: Mapping[str, Any]) -> bool:
    # Order 0 follows scipy's rounding of single coordinates; labels interpolated between slices are nobody's default.
    usual = keywords.get("order", 3) > 0 and not (keywords.get("is_seg") and keywords.get("order_z", 0) > 0)
    known = not set(keywords) - set(signature(resample).parameters)
    return inner is resample_data_or_seg_to_shape and usual and known and keywords.get("order_z", 0) <= 1


def _needs_no_tiebreak(inner: Callable[..., Any], keywords: Mapping[str, Any]) -> bool:
    """Whether an nnU-Net that does not know the argument does what it asks for all the same."""
    if inner is not resample_data_or_seg_to_shape or TIEBREAK in signature(inner).parameters:
        return False
    # What it calls settles ties by the nearest label; an image has no labels, and order 0 no ties.
    return not keywords.get("is_seg") or keywords.get("order", 3) == 0 or keywords[TIEBREAK] == "nearest"


def unknown_arguments(entries: Mapping[str, Any]) -> list[str]:
    """What stands in a configuration's `resampling_fn_..._kwargs` and the installed nnU-Net does not know, a sentence each."""
    mistakes = []
    for what in ("data", "seg"):
        name, keywords = entries.get(f"resampling_fn_{what}"), entries.get(f"resampling_fn_{what}_kwargs")
        mistake = _mistake(name, keywords) if name and isinstance(keywords, dict) else None
        if mistake is not None:
            mistakes.append(f"resampling_fn_{what}_kwargs {mistake}")
    return mistakes


def _mistake(name: str, keywords: Mapping[str, Any]) -> str | None:
    tiebreak = keywords.get(TIEBREAK, "nearest")
    if tiebreak not in TIEBREAKS:
        return f"must have one of {', '.join(TIEBREAKS)} for {TIEBREAK}, found {tiebreak!r}."
    try:
        function: Any = faster(partial(recursive_find_resampling_fn_by_name(name), **keywords))
    except RuntimeError:
        return f"belong to {name}, but the installed nnunetv2 {version('nnunetv2')} has no resampling function {name}."
    parameters = signature(function.func).parameters
    unknown = sorted(set(function.keywords) - set(parameters))
    if not unknown or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return (
        f"holds {', '.join(unknown)}, which {name} of the installed nnunetv2 {version('nnunetv2')} does not know; "
        "pip install --upgrade nnunetv2, or take it out of the plans."
    )
