"""What plans must hold, looked at with the checker of settings: they are edited by hand, and a slip is told in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.planners.preprocessing.resampling_choice import unknown_arguments
from nnunet_ssl.settings.allowed import AS_IS
from nnunet_ssl.settings.bounds import Bounds, Count, Name, Positive, Whole
from nnunet_ssl.settings.checker import check_block, rules

Axes = Bounds(min_length=2)


@dataclass(frozen=True)
class PlansEntries:
    """What is read from the top of plans."""

    plans_name: Name
    image_reader_writer: Name
    transpose_forward: Annotated[list[Whole], Axes]
    transpose_backward: Annotated[list[Whole], Axes]
    foreground_intensity_properties_per_channel: dict[str, Any]


@dataclass(frozen=True)
class ConfigurationEntries:
    """What is read from a configuration, with what it inherits."""

    data_identifier: Name
    preprocessor_name: Name
    batch_size: Count
    patch_size: Annotated[list[Count], Axes]
    spacing: Annotated[list[Positive], Axes]
    normalization_schemes: Annotated[list[Name], Bounds(min_length=1)]
    use_mask_for_norm: Annotated[list[bool], Bounds(min_length=1)]
    architecture: dict[str, Any]


def require_complete(plans: Mapping[str, Any], entries: Mapping[str, Any], configuration: str) -> None:
    """Raise CorpusError, naming all that is missing or no such thing in plans and in the `entries` of a configuration."""
    where = f'plans["configurations"]["{configuration}"]'
    in_entries = [*_mistakes(ConfigurationEntries, entries), *unknown_arguments(entries)]
    own = [*_mistakes(PlansEntries, plans), *(f"{where}: {text}" for text in in_entries)]
    if own:
        raise CorpusError(
            f"The plans {plans.get('plans_name')} of {plans.get('dataset_name')} cannot be used. {' '.join(own)} Undo the "
            "change, or plan anew."
        )


def _mistakes(cls: type, content: Mapping[str, Any]) -> list[str]:
    known = {key: value for key, value in content.items() if key in rules(cls)}
    return check_block(cls, known, ease=AS_IS).refusals
