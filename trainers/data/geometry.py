"""How preprocessed images lie in the patient, and what their grey values are: for the pictures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import join
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssl.planners.preprocessing.normalization import SCALE, SSLCTNormalization
from nnunet_ssl.report.geometry import Geometry, common
from nnunet_ssl.report.orientation import codes_of
from nnunet_ssl.report.planes import NORMALISED, STORED, GreyScale
from nnunet_ssl.trainers.context import LoaderContext
from nnunet_ssl.trainers.data.loading import corpus_datasets
from nnunet_ssl.trainers.data.patches import JOINED


def geometry_of(context: LoaderContext, key: str) -> Geometry:
    """Orientation and voxel size of the images of a sample, by its key (`<data set>/<case>`), as they are preprocessed.

    Of several images what they have in common. Of 2D patches that of the slice.
    """
    cases = key.split(JOINED) if context.views.regions > 1 else [key]
    folders = {dataset.name: dataset.folder for dataset in corpus_datasets(context)}
    plans, configuration = context.plans_manager, context.configuration_manager
    found = []
    for dataset, case in (name.split("/", 1) for name in cases):
        noted = load_pickle(join(folders[dataset], f"{case}.pkl"))
        codes = codes_of(noted, plans.transpose_forward)
        found.append(Geometry(codes, spacing_of(noted, plans.transpose_forward, configuration)))
    shared = common(found)
    return shared.of_slice() if len(context.views.region_size) == 2 else shared


def spacing_of(
    properties: Mapping[str, Any], transpose: Sequence[int], configuration: ConfigurationManager
) -> tuple[float, ...]:
    """Voxel size [mm] of a preprocessed image: the plans', or its own where plans have none, as across 2D patches."""
    own = [float(properties["spacing"][axis]) for axis in transpose]
    if configuration.resampling_fn_data.func is no_resampling_hack:
        return tuple(own)
    planned = [float(size) for size in configuration.spacing]
    return (*own[: len(own) - len(planned)], *planned)


def grey_scale_of(plans: PlansManager, configuration: ConfigurationManager) -> GreyScale:
    """What the grey values of the first channel are: Hounsfield units where the normalisation can be turned back."""
    scheme = configuration.normalization_schemes[0]
    if scheme == SSLCTNormalization.__name__:
        return GreyScale("HU", SCALE)
    if scheme == "CTNormalization":
        noted = plans.foreground_intensity_properties_per_channel["0"]
        return GreyScale("HU", max(float(noted["std"]), 1e-8), float(noted["mean"]))
    return STORED if scheme == "NoNormalization" else NORMALISED
