"""Plans that several datasets share, so that they can be one corpus."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from os.path import isfile, join
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.datasets import load_configuration, load_plans, plans_file
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.planners.preprocessing.normalization import are_per_image, distinct_modalities, schemes_for
from nnunet_ssl.planners.sharing.follow import follow_dataset_json
from nnunet_ssl.planners.ssl_planner import SSLPlanner, SSLPlannerResEncL


def joint_plans_name(base: str, names: Sequence[str]) -> str:
    """`<base>_with_4_745`, the same in every dataset and for every order of them."""
    return "_with_".join([base, "_".join(str(dataset_id(name)) for name in sorted(names))])


def have_joint_plans(names: Sequence[str], plans_name: str) -> bool:
    """Whether every dataset has its copy."""
    return all(isfile(plans_file(name, plans_name)) for name in names)


def pooled_geometry(names: Sequence[str]) -> dict[str, Any]:
    """Spacings and shapes of all images of all datasets, from their fingerprints."""
    fingerprints = [read_json(join(nnUNet_preprocessed, name, "dataset_fingerprint.json")) for name in names]
    return {key: [x for f in fingerprints for x in f[key]] for key in ("spacings", "shapes_after_crop")}


def plan_jointly(
    names: Sequence[str],
    planner_class: type[SSLPlanner],
    plans_name: str,
    **how: Any,
) -> None:
    """Plan every dataset with the images of all: one network, spacing and patch size, each its own normalisation.

    `how` are the planner's own settings, such as spacing_style and patch_size.
    """
    geometry = pooled_geometry(names)
    for name in names:
        planner = planner_class(name, plans_name=plans_name, geometry=geometry, **how)
        _write(planner.plan_experiment(), names)


def copy_jointly(names: Sequence[str], base: str, configuration: str, plans_name: str) -> None:
    """Give every dataset a copy of one configuration of the first one's existing plans `base`.

    Network, spacing, patch size and order of axes are those of the first; reader, normalisation and intensities each
    dataset's own.
    """
    source = load_plans(names[0], base)
    chosen = load_configuration(source, configuration)
    if chosen.get("previous_stage"):
        raise CorpusError(f"{configuration} continues the output of another network. Pre-train with 3d_fullres.")
    for name in names:
        own = SSLPlannerResEncL(name, plans_name=plans_name)
        schemes, use_mask = own.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        if are_per_image(chosen["normalization_schemes"]):
            schemes = schemes_for(
                [str(c) for c in own.dataset_json["channel_names"].values()],
                distinct_modalities(own.raw_dataset_folder),
            )
        settings = deepcopy(chosen)
        settings.pop("inherits_from", None)
        settings.update(
            data_identifier=own.generate_data_identifier(configuration),
            preprocessor_name="SSLPreprocessor",
            normalization_schemes=schemes,
            use_mask_for_norm=use_mask,
        )
        plans = deepcopy(source)
        plans.update(
            dataset_name=name,
            plans_name=plans_name,
            image_reader_writer=own.determine_reader_writer().__name__,
            configurations={configuration: settings},
            experiment_planner_used=SSLPlanner.__name__,
            foreground_intensity_properties_per_channel=own.dataset_fingerprint[
                "foreground_intensity_properties_per_channel"
            ],
        )
        follow_dataset_json(name, own.raw_dataset_folder, own.dataset_json)
        write_json(own.dataset_json, join(nnUNet_preprocessed, name, "dataset.json"))
        _write(plans, names)


def _write(plans: dict[str, Any], names: Sequence[str]) -> None:
    """Save plans with the other datasets of the corpus named in every configuration's `ssl` block."""
    name = plans["dataset_name"]
    for configuration in plans["configurations"].values():
        configuration.setdefault("ssl", {})["datasets"] = [other for other in names if other != name]
    write_json(plans, plans_file(name, plans["plans_name"]))
