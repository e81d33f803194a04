"""Images as the weights expect them: read, normalised and resampled as the pre-training's were."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.checkpoints.description.conventions import Conventions
from nnunet_ssl.checkpoints.foreign_values import mapping
from nnunet_ssl.checkpoints.networks.stated import training_configuration
from nnunet_ssl.corpus.reader import CorpusReader
from nnunet_ssl.corpus.reading import read_case, read_label
from nnunet_ssl.errors import CheckpointError, SettingsError, UnusableImage
from nnunet_ssl.features.placement import Placement
from nnunet_ssl.planners.preprocessing.case import preprocess_case, reason_against
from nnunet_ssl.planners.preprocessing.normalization import MODALITY
from nnunet_ssl.planners.preprocessor import SSLPreprocessor

CONFIGURATION = "features"
SPACING = (1.0, 1.0, 1.0)  # mm; the OpenMind benchmark's, where a checkpoint states none
SCHEME = "ZScoreNormalization"  # nnU-Net's own, where it states none
NO_RESAMPLING = "no_resampling_hack"
IMAGE, LABEL = {"is_seg": False, "order": 3}, {"is_seg": True, "order": 1}
Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Prepared:
    """An image for the encoder [C, *spatial], float32, with its labels [*spatial] where there were any."""

    image: np.ndarray
    labels: np.ndarray | None
    placement: Placement


@dataclass(frozen=True)
class Preparation:
    """How images are presented to an encoder. Everything in the order of axes of the network.

    spacing [mm]: None keeps that of each image. normalization: nnU-Net's scheme per channel. notes: what was assumed.
    """

    spacing: tuple[float, ...] | None
    normalization: tuple[str, ...]
    use_mask: tuple[bool, ...]
    intensities: Mapping[str, Any]
    transpose: tuple[int, ...]
    axes: int  # of the network's patches
    notes: tuple[str, ...] = ()

    @classmethod
    def like_pretraining(
        cls,
        checkpoint: Mapping[str, Any],
        conventions: Conventions,
        axes: int,
        channels: int,
        spacing: Sequence[float] | None = None,
        normalization: str | None = None,
    ) -> Preparation:
        """As a checkpoint says; spacing, normalization: what the user says instead.

        Raises CheckpointError where it does not say enough, SettingsError for a spacing that is none.
        """
        notes = []
        if spacing is not None:
            if len(spacing) != 3 or not all(s > 0 for s in spacing):
                raise SettingsError(f"The spacing is three numbers above 0 [mm], found {list(spacing)}.")
        elif conventions.resampled and conventions.spacing:
            spacing = conventions.spacing
        elif conventions.resampled is None:
            spacing = SPACING
            notes.append("The file states no spacing; 1 mm is assumed. To say it: --spacing Z Y X, in Python spacing=.")
        known = [name for name in conventions.normalization if not name.startswith("unknown")]
        schemes = [normalization] * channels if normalization else known
        if not schemes:
            schemes = [SCHEME]
            notes.append(f"The file states no normalisation; {SCHEME} is assumed. To say it: --normalization NAME.")
        if len(set(schemes)) == 1:
            schemes = schemes[:1] * channels
        if len(schemes) != channels:
            raise CheckpointError(
                f"The weights' {len(schemes)} channels were normalised each in its own way ({', '.join(schemes)}), and the "
                f"images have {channels}. Say how: --normalization NAME, in Python normalization=."
            )
        plans = mapping(mapping(checkpoint.get("init_args")).get("plans"))
        intensities = mapping(plans.get("foreground_intensity_properties_per_channel"))
        if "CTNormalization" in schemes and not intensities:
            raise CheckpointError(
                "The weights expect images normalised with their data set's own intensities (CTNormalization), and the file does "
                "not hold these. Say another one: --normalization SSLCTNormalization, in Python normalization=."
            )
        masked = training_configuration(checkpoint).get("use_mask_for_norm")
        same = isinstance(masked, (list, tuple)) and len(masked) == channels and not normalization
        return cls(
            spacing=None if spacing is None else tuple(float(s) for s in spacing),
            normalization=tuple(schemes),
            use_mask=tuple(bool(m) for m in masked) if same else (False,) * channels,  # type: ignore[union-attr]
            intensities={
                str(n): mapping(intensities.get(str(n))) or mapping(intensities.get("0")) for n in range(channels)
            },
            transpose=conventions.transpose_forward or (0, 1, 2),
            axes=axes,
            notes=tuple(notes),
        )

    def plans(self, own_spacing: Sequence[float]) -> dict[str, Any]:
        """nnU-Net's plans that prepare an image so; own_spacing: of that image [mm, the array's axes]."""
        kept = self.spacing is None
        spacing = list(self.spacing or [own_spacing[a] for a in self.transpose])[-self.axes :]
        how = NO_RESAMPLING if kept else "resample_data_or_seg_to_shape"
        extra = {} if kept else {"order_z": 0, "force_separate_z": None}
        configuration = {
            "data_identifier": CONFIGURATION,
            "preprocessor_name": SSLPreprocessor.__name__,
            "batch_size": 1,
            "patch_size": [1] * self.axes,
            "spacing": spacing,
            "normalization_schemes": list(self.normalization),
            "use_mask_for_norm": list(self.use_mask),
            "architecture": {
                "network_class_name": "",
                "arch_kwargs": {},
                "_kw_requires_import": [],
            },  # nobody builds it
            "resampling_fn_data": how,
            "resampling_fn_seg": how,
            "resampling_fn_data_kwargs": {} if kept else {**IMAGE, **extra},
            "resampling_fn_seg_kwargs": {} if kept else {**LABEL, **extra},
        }
        return {
            "dataset_name": "Dataset000_Features",
            "plans_name": CONFIGURATION,
            "transpose_forward": list(self.transpose),
            "transpose_backward": [self.transpose.index(a) for a in range(3)],
            "configurations": {CONFIGURATION: configuration},
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": dict(self.intensities),
        }

    def read(self, files: Files, label: str | None = None, modality: str | None = None) -> Prepared:
        """Read and prepare an image: a file, or one per channel.

        label: its segmentation. modality: where the normalisation is each image's own, e.g. "CT" or "T1w".
        Raises UnusableImage for what cannot be read or used, and for labels of another shape.
        """
        names = [files] if isinstance(files, (str, os.PathLike)) else list(files)
        data, properties = read_case(CorpusReader, [os.fspath(name) for name in names])
        labels, reason = read_label(CorpusReader, label, data.shape)
        if reason is not None:
            raise UnusableImage(f"its labels cannot be used: {reason}")
        return self.prepare(data, properties, labels, modality)

    def prepare(
        self,
        data: np.ndarray,
        properties: dict[str, Any],
        labels: np.ndarray | None = None,
        modality: str | None = None,
    ) -> Prepared:
        """The image [C, D, H, W] with what its reader noted ("spacing" at least), and labels [1, D, H, W], prepared."""
        properties = {**properties, MODALITY: modality} if modality else dict(properties)
        manager = PlansManager(self.plans(properties["spacing"]))
        configuration = manager.get_configuration(CONFIGURATION)
        reason = reason_against(data, labels, properties, manager, configuration)
        if reason:
            raise UnusableImage(reason)
        values = [] if labels is None else [int(v) for v in np.unique(labels) if v > 0]
        described = {
            "channel_names": {str(n): "" for n in range(len(data))},
            "labels": {"background": 0, **{str(v): v for v in values}},
        }
        image, seg, properties = preprocess_case(
            SSLPreprocessor(verbose=False), data, labels, properties, manager, configuration, described, training=False
        )
        placement = Placement.read(properties, image.shape[1:], self.transpose)
        return Prepared(image, None if labels is None else np.maximum(seg[0], 0), placement)
