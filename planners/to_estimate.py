"""The plans a run would have, as far as they are known before anything is prepared."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import isfile
from typing import Any

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.corpus.datasets import load_plans, plans_file, resolve_datasets
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.planners.joint import joint_plans_name
from nnunet_ssl.planners.prepare import find_planner, name_of_plans, planner_settings
from nnunet_ssl.planners.ssl_planner import CONFIGURATION


def plans_to_estimate(
    datasets: Sequence[str | int],
    planner: str | None,
    plans_name: str | None,
    spacing: str | None = None,
    normalization: str | None = None,
    storage: str | None = None,
) -> tuple[dict[str, Any], str]:
    """(plans, where they come from, in one line): those that are there, else the planner's for large images.

    The settings are those of `prepare_corpus`. Reads no image and writes nothing. Raises CorpusError where plans are named
    (`planner` is None) that are not there.
    """
    how = planner_settings(spacing, None, normalization, storage)
    try:
        names = resolve_datasets(datasets)
        if plans_name is None:
            assert planner is not None
            plans_name = name_of_plans(find_planner(planner), how)
        joint = joint_plans_name(plans_name, names)
        if len(names) > 1 and (planner is not None or isfile(plans_file(names[0], joint))):
            plans_name = joint
        return load_plans(names[0], plans_name), f"Counted for the plans {plans_name} of {names[0]}."
    except CorpusError:
        if planner is None:
            raise
    plans = plans_without_data(planner)
    patch = plans["configurations"][CONFIGURATION]["patch_size"]
    return plans, (
        f"{', '.join(map(str, datasets))}: not planned here yet. Counted for {plans['plans_name']} with patches of "
        f"{shape_text(patch)} voxels; the planner takes smaller ones where images are smaller."
    )


def plans_without_data(planner: str) -> dict[str, Any]:
    """The plans of a planner of presets for large single-channel images, as far as the network sees them."""
    cls = find_planner(planner)
    patch = [cls.preset.patch_edge] * 3
    configuration = {
        "patch_size": patch,
        "batch_size": cls.preset.batch_size,
        "architecture": cls.preset.architecture(patch),
        "normalization_schemes": ["ZScoreNormalization"],
        "ssl": dict(cls.preset.ssl),
    }
    return {"plans_name": cls.default_plans_name, "configurations": {CONFIGURATION: configuration}}
