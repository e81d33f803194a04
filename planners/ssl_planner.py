"""Planners with fixed networks, for pre-training and for fine-tuning on the same plans."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from os import makedirs
from os.path import isfile, join
from typing import Any

import numpy as np
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.corpus.left_out import still_left_out
from nnunet_ssl.corpus.reading import choose_reader
from nnunet_ssl.corpus.splits import take_over_splits
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.folders import require_writable
from nnunet_ssl.files.torn import is_whole
from nnunet_ssl.integration.writing import whole_files
from nnunet_ssl.messages import say_errors_in_one_line
from nnunet_ssl.planners.patch_size import choose_patch_size, padding_warning, require_patch_size
from nnunet_ssl.planners.preprocessing.normalization import PER_IMAGE, distinct_modalities, require_style, schemes_for
from nnunet_ssl.planners.preprocessing.storage import KEY as STORAGE_KEY
from nnunet_ssl.planners.preprocessing.storage import require_storage
from nnunet_ssl.planners.presets import PRIMUS_M, PRIMUS_TINY, PRIMUS_X, RESENC_L, RESENC_TINY, Preset
from nnunet_ssl.planners.sharing.follow import follow_dataset_json

SPACING_STYLES = ("onemmiso", "median", "noresample")
CONFIGURATION = "3d_fullres"
NNUNET_PLANS = ("nnUNetPlans", "nnUNetResEnc*Plans")


class SSLPlanner(ExperimentPlanner):
    """Plans one configuration, 3d_fullres, with the fixed network of `preset`.

    Target spacing by `spacing_style`: 1 mm in every direction ("onemmiso"), the median of the images ("median"), or
    every image as it is ("noresample"; the plans then name the median). The patch has the preset's size, less where
    the images are smaller, unless `patch_size` [voxels per axis, after transposition] is given. `normalization` is
    nnU-Net's or each image's own ("per_image"); `storage` the type of the stored images ("float32", "float16").
    `geometry` is the fingerprint to take spacings and shapes from when several datasets share them.
    """

    preset: Preset
    default_plans_name: str

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "SSLPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        *,
        spacing_style: str = "onemmiso",
        patch_size: Sequence[int] | None = None,
        normalization: str = "nnunet",
        storage: str = "float32",
        geometry: dict[str, Any] | None = None,
    ) -> None:
        if gpu_memory_target_in_gb is not None:
            print(f"{type(self).__name__} plans a fixed network: the GPU memory target is not used.")
        say_errors_in_one_line()  # of nnU-Net's commands as well
        self.dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        self.spacing_style = require_spacing_style(spacing_style)
        self.normalization, self.storage = require_style(normalization), require_storage(storage)
        self.patch_size = None if patch_size is None else require_patch_size(patch_size, self.preset.stride)
        self.plans_identifier = plans_name or self.plans_name_for(spacing_style)
        self.overwrite_target_spacing = overwrite_target_spacing
        self.suppress_transpose = suppress_transpose
        # nnU-Net's commands always pass the name of their own default, which cannot do without labels.
        self.preprocessor_name = "SSLPreprocessor" if preprocessor_name == "DefaultPreprocessor" else preprocessor_name
        self.anisotropy_threshold = ANISO_THRESHOLD
        self.plans: dict[str, Any] | None = None

        self.raw_dataset_folder = join(nnUNet_raw, self.dataset_name)
        self.folder = join(nnUNet_preprocessed, self.dataset_name)
        self._require_own_plans()
        self.dataset_json = read_dataset_json(self.raw_dataset_folder)
        self.dataset = list_images(self.raw_dataset_folder, self.dataset_json)
        fingerprint = join(self.folder, "dataset_fingerprint.json")
        if not isfile(fingerprint):
            raise CorpusError(
                f"There is no fingerprint of {self.dataset_name} yet. Run nnUNetv2_extract_fingerprint "
                f"-d {dataset_id(self.dataset_name)} -fpe SSLFingerprintExtractor"
            )
        require_writable(self.folder)
        self.dataset_fingerprint = read_json(fingerprint)
        self.geometry = geometry or self.dataset_fingerprint
        splits = join(self.raw_dataset_folder, "splits_final.json")
        take_over_splits(splits, join(self.folder, "splits_final.json"), self.dataset)

    @classmethod
    def plans_name_for(cls, spacing_style: str) -> str:
        """The name of the plans a preset writes; those with another spacing than 1 mm carry it in their name."""
        return cls.default_plans_name if spacing_style == "onemmiso" else f"{cls.default_plans_name}_{spacing_style}"

    def _require_own_plans(self) -> None:
        path = join(self.folder, f"{self.plans_identifier}.json")
        taken = any(fnmatch.fnmatch(self.plans_identifier, pattern) for pattern in NNUNET_PLANS)
        if isfile(path) and not taken:
            author = str(read_json(path).get("experiment_planner_used", ""))
            taken = author != type(self).__name__ and not author.startswith("SSLPlanner")
        if taken:
            raise CorpusError(
                f"The plans name {self.plans_identifier} belongs to another planner, whose plans must not be overwritten. "
                f"Choose another one with -overwrite_plans_name, or leave it out for {self.default_plans_name}."
            )

    def determine_reader_writer(self) -> type:
        """nnU-Net's reader for these images, whatever state the first file is in."""
        left_out = still_left_out(self.folder, self.dataset)
        usable = {name: case for name, case in self.dataset.items() if name not in left_out}
        return choose_reader(self.dataset_json, usable or self.dataset)

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """Target spacing [mm] in the images' own order of axes."""
        if self.overwrite_target_spacing is not None:
            return np.array(self.overwrite_target_spacing, float)
        if self.spacing_style == "onemmiso":
            return np.ones(3)
        return np.median(np.vstack(self.geometry["spacings"]), 0)

    def determine_resampling(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any], Any, dict[str, Any]]:
        """nnU-Net's resampling, or none."""
        if self.spacing_style == "noresample":
            return no_resampling_hack, {}, no_resampling_hack, {}
        return super().determine_resampling()

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """nnU-Net's way back to the images' own voxels, or none."""
        if self.spacing_style == "noresample":
            return no_resampling_hack, {}
        return super().determine_segmentation_softmax_export_fn()

    def resampled_shapes(self, spacing: np.ndarray) -> np.ndarray:
        """Shapes [N, 3] after resampling to `spacing` mm, axes in the images' own order."""
        shapes = self.geometry["shapes_after_crop"]
        if self.spacing_style == "noresample":
            return np.array(shapes)
        pairs = zip(self.geometry["spacings"], shapes, strict=True)
        return np.array([compute_new_shape(shape, own, spacing) for own, shape in pairs])

    def plan_experiment(self) -> dict[str, Any]:
        """Write the plans and the completed dataset.json to nnUNet_preprocessed; raises CorpusError for 2-D images."""
        if np.median(np.array(self.geometry["shapes_after_crop"]), 0).min() < 2:
            raise CorpusError(
                f"{self.dataset_name} holds 2-D images; {type(self).__name__} plans volumes. Use nnU-Net's own planner "
                f"and its 2d configuration: nnUNetv2_plan_experiment -d {dataset_id(self.dataset_name)}, then "
                "nnUNetv2_pretrain with -p nnUNetPlans -c 2d"
            )
        forward, backward = self.determine_transpose()
        spacing = self.determine_fullres_target_spacing()
        configuration = self.plan_configuration(spacing[forward], self.resampled_shapes(spacing)[:, forward])
        self.plans = self.assemble(forward, backward, {CONFIGURATION: configuration})
        makedirs(self.folder, exist_ok=True)
        follow_dataset_json(self.dataset_name, self.raw_dataset_folder, self.dataset_json)  # with other plans there
        write_json(self.dataset_json, join(self.folder, "dataset.json"))
        is_whole(join(self.folder, f"{self.plans_identifier}.json"))  # nnU-Net reads it for further configurations
        with whole_files():
            self.save_plans(self.plans)
        return self.plans

    def assemble(
        self, forward: Sequence[int], backward: Sequence[int], configurations: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Plans of this dataset around `configurations`."""
        return {
            "dataset_name": self.dataset_name,
            "plans_name": self.plans_identifier,
            "original_median_spacing_after_transp": self._median("spacings")[forward].tolist(),
            "original_median_shape_after_transp": self._median("shapes_after_crop")[forward]
            .round()
            .astype(int)
            .tolist(),
            "image_reader_writer": self.determine_reader_writer().__name__,
            "transpose_forward": [int(i) for i in forward],
            "transpose_backward": [int(i) for i in backward],
            "configurations": dict(configurations),
            "experiment_planner_used": type(self).__name__,
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": self.dataset_fingerprint[
                "foreground_intensity_properties_per_channel"
            ],
        }

    def resampling_entries(self) -> dict[str, Any]:
        """The entries of a configuration that name the functions which resample, nnU-Net's own choice."""
        data, data_kwargs, seg, seg_kwargs = self.determine_resampling()
        probabilities, probabilities_kwargs = self.determine_segmentation_softmax_export_fn()
        return {
            "resampling_fn_data": data.__name__,
            "resampling_fn_seg": seg.__name__,
            "resampling_fn_data_kwargs": data_kwargs,
            "resampling_fn_seg_kwargs": seg_kwargs,
            "resampling_fn_probabilities": probabilities.__name__,
            "resampling_fn_probabilities_kwargs": probabilities_kwargs,
        }

    def plan_configuration(self, spacing: np.ndarray, shapes: np.ndarray) -> dict[str, Any]:
        """3d_fullres for images of `shapes` [N, 3] at `spacing` [mm], both transposed."""
        preset, median_shape = self.preset, np.median(shapes, 0)
        patch_size = self.patch_size or choose_patch_size(preset.patch_edge, median_shape.tolist(), preset.stride)
        warning = padding_warning(patch_size, shapes.tolist(), preset.stride)
        if warning:
            print(warning)
        schemes, use_mask = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        if self.normalization == PER_IMAGE:
            channels = [str(name) for name in self.dataset_json["channel_names"].values()]
            schemes = schemes_for(channels, distinct_modalities(self.raw_dataset_folder))
        millimetres = " x ".join(f"{s:g}" for s in spacing)
        print(
            f"{self.dataset_name}: {type(self).__name__} plans patches of {shape_text(patch_size)} voxels of {millimetres} mm"
            f"{' (the median; nothing is resampled)' if self.spacing_style == 'noresample' else ''}; "
            f"the median image has {shape_text(median_shape)}."
        )
        return {
            "data_identifier": self.generate_data_identifier(CONFIGURATION),
            "preprocessor_name": self.preprocessor_name,
            "batch_size": preset.batch_size,
            "patch_size": list(patch_size),
            "median_image_size_in_voxels": median_shape.tolist(),
            "spacing": [float(s) for s in spacing],
            "normalization_schemes": schemes,
            "use_mask_for_norm": use_mask,
            **self.resampling_entries(),
            "architecture": preset.architecture(patch_size),
            "batch_dice": False,
            STORAGE_KEY: self.storage,
            "ssl": dict(preset.ssl),
            "finetune": dict(preset.finetune),
        }

    def _median(self, key: str) -> np.ndarray:
        return np.median(np.array(self.dataset_fingerprint[key], float), 0)


def require_spacing_style(style: str) -> str:
    """`style` if it is one; raises CorpusError naming those that are."""
    if style not in SPACING_STYLES:
        raise CorpusError(f"The spacing is one of {', '.join(SPACING_STYLES)}, found {style!r}.")
    return style


class SSLPlannerResEncL(SSLPlanner):
    """ResEnc-L, the convolutional network of the OpenMind benchmark."""

    preset, default_plans_name = RESENC_L, "nnUNetSSLResEncLPlans"


class SSLPlannerPrimusM(SSLPlanner):
    """Primus-M, the transformer of the OpenMind benchmark."""

    preset, default_plans_name = PRIMUS_M, "nnUNetSSLPrimusMPlans"


class SSLPlannerPrimusX(SSLPlanner):
    """The large transformer of nnFoundation; its authors resample nothing: `--spacing noresample`."""

    preset, default_plans_name = PRIMUS_X, "nnUNetSSLPrimusXPlans"


class SSLPlannerResEncTiny(SSLPlanner):
    """A small residual-encoder U-Net for CPUs, demos and tests."""

    preset, default_plans_name = RESENC_TINY, "nnUNetSSLResEncTinyPlans"


class SSLPlannerPrimusTiny(SSLPlanner):
    """A small Primus for CPUs, demos and tests."""

    preset, default_plans_name = PRIMUS_TINY, "nnUNetSSLPrimusTinyPlans"
