"""Plans for fine-tuning: the network of a checkpoint, the images of a data set, and what lies between the two."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_ssl.checkpoints.description.conventions import Conventions
from nnunet_ssl.checkpoints.networks.spec import NetworkSpec
from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.errors import CorpusError, SettingsError
from nnunet_ssl.planners.finetuning.finetune_geometry import (
    ADAPT,
    DEFAULT_EDGE,
    patch_like,
    patch_within_budget,
    require_fitting_patch,
    require_spacing,
)
from nnunet_ssl.planners.patch_size import padding_warning
from nnunet_ssl.planners.preprocessing.normalization import are_per_image, schemes_like
from nnunet_ssl.planners.sharing.finished import relevant_settings
from nnunet_ssl.planners.ssl_planner import SSLPlanner

BATCH_SIZE = 2  # of the OpenMind benchmark's fine-tuning (https://arxiv.org/abs/2412.17041)
ISOTROPIC = 1.01  # largest over smallest spacing


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; None: whatever suits the checkpoint and the data."""

    adapt: str | None = None
    spacing: Sequence[float] | None = None  # mm, in the images' own order of axes
    patch_size: Sequence[int] | None = None  # voxels
    batch_size: int | None = None
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    save_every: int | None = None  # epochs
    early_stop: int | None = None  # epochs without a better Dice
    stem: str | None = None  # of weights with a stem for every data set

    def resolved_adapt(self, conventions: Conventions) -> str:
        """The way to adapt; raises CorpusError for wishes that contradict each other or the checkpoint."""
        adapt = self.adapt or ("fixed" if self.spacing is not None else default_adapt(conventions))
        if adapt not in ADAPT:
            raise CorpusError(f"--adapt is one of {', '.join(ADAPT)}, found {adapt!r}.")
        if (adapt == "fixed") != (self.spacing is not None):
            raise CorpusError(
                "--adapt fixed wants the spacing: add --spacing 1 1 1 (mm, in the images' own order of axes)."
                if adapt == "fixed"
                else f"--spacing belongs to --adapt fixed, found --adapt {adapt}. Leave one of the two out."
            )
        if adapt == "like_pretrained" and conventions.resampled is None:
            raise CorpusError(
                "The file does not state the spacing of its pre-training, so --adapt like_pretrained has nothing to go by. "
                "Use --adapt like_dataset, or --adapt fixed --spacing with the spacing you know it was trained at."
            )
        self.require_positive()
        return adapt

    def require_positive(self) -> None:
        """Raise SettingsError for numbers that are none; all of them in one message."""
        numbers = {
            "--batch-size": self.batch_size,
            "--epochs": self.epochs,
            "--iterations-per-epoch": self.iterations_per_epoch,
            "--save-every": self.save_every,
            "--early-stop": self.early_stop,
        }
        wrong = [f"{k} must be at least 1, found {v}." for k, v in numbers.items() if v is not None and v < 1]
        if wrong:
            raise SettingsError(" ".join(wrong))

    def schedule(self) -> dict[str, int | str]:
        """The entries of the `finetune` block that are asked for."""
        asked = {
            "num_epochs": self.epochs,
            "num_iterations_per_epoch": self.iterations_per_epoch,
            "save_every": self.save_every,
            "early_stop": self.early_stop,
            "stem": self.stem,
        }
        return {key: value for key, value in asked.items() if value is not None}

    def short(self) -> list[str]:
        """What tells plans of these lengths, batches and stems from others, for their names: ["150ep", "batch4"]."""
        asked: tuple[tuple[int | str | None, str], ...] = (
            (self.epochs, "{}ep"),
            (self.iterations_per_epoch, "{}it"),
            (self.batch_size, "batch{}"),
            (self.save_every, "save{}"),
            (self.early_stop, "stop{}"),
            (None if self.stem is None else re.sub(r"[^A-Za-z0-9-]+", "-", self.stem), "stem{}"),
        )
        return [text.format(number) for number, text in asked if number is not None]


def default_adapt(conventions: Conventions) -> str:
    """like_pretrained where the pre-training had one spacing, as OpenMind recommends for its weights; else like_dataset.

    Weights trained on images of every spacing (nnFoundation) and files that state none take the data set's own planning.
    """
    return "like_pretrained" if conventions.resampled and conventions.spacing else "like_dataset"


class FinetunePlanner(SSLPlanner):
    """Plans the one configuration a checkpoint's network can be used in: 3d_fullres, or 2d for networks of slices.

    Spacing and axes come from `wishes.adapt`, normalisation from the data set (see `choose_schemes`), the network and
    nothing else from the checkpoint. `plan` writes nothing.
    """

    def __init__(
        self, dataset_name: str, plans_name: str, spec: NetworkSpec, conventions: Conventions, wishes: Wishes
    ) -> None:
        self.adapt = wishes.resolved_adapt(conventions)
        if self.adapt == "like_pretrained" and not conventions.resampled:
            self.adapt = "no_resample"  # which is what the pre-training did
        self.spec, self.conventions, self.wishes = spec, conventions, wishes
        self.configuration = "3d_fullres" if spec.ndim == 3 else "2d"
        super().__init__(dataset_name, plans_name=plans_name)
        self.spacing_style = "noresample" if self.adapt == "no_resample" else "median"
        unlabelled = [case for case, files in self.dataset.items() if files["label"] is None]
        # Prediction with nnU-Net's own preprocessor needs nothing of ours; training on it needs all labels.
        self.preprocessor_name = "SSLPreprocessor" if unlabelled else "DefaultPreprocessor"

    def _require_own_plans(self) -> None:
        """Plans are compared with existing ones before they are written, whoever wrote those."""

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """nnU-Net's own choice for this data set, the median where nothing is resampled [mm, the images' axes]."""
        if self.adapt == "no_resample":
            return np.median(np.vstack(self.dataset_fingerprint["spacings"]), 0)
        if self.adapt == "fixed" and self.wishes.spacing is not None and self.spec.ndim == 3:
            return np.array(require_spacing(self.wishes.spacing, 3))
        return ExperimentPlanner.determine_fullres_target_spacing(self)

    def choose_geometry(self) -> tuple[list[int], list[int], np.ndarray]:
        """(transpose_forward, transpose_backward, spacing [mm, 3, transposed])."""
        forward, backward = (list(map(int, axes)) for axes in self.determine_transpose())
        wanted = None
        if self.adapt == "like_pretrained":
            wanted = list(self.conventions.spacing or ())
            if len(wanted) == 3 and max(wanted) <= ISOTROPIC * min(wanted):
                # With equal spacings the order of axes is free, so that of the pre-training is kept.
                forward = list(self.conventions.transpose_forward or (0, 1, 2))
                backward = [forward.index(axis) for axis in range(3)]
        elif self.adapt == "fixed" and self.spec.ndim == 2:
            wanted = require_spacing(self.wishes.spacing or (), 2)
        spacing = self.determine_fullres_target_spacing()[forward]
        if wanted:
            if len(wanted) < self.spec.ndim:
                raise CorpusError(
                    f"The pre-training's spacing has {len(wanted)} axes, the network {self.spec.ndim}. Use --adapt fixed."
                )
            spacing[-self.spec.ndim :] = wanted[-self.spec.ndim :]
        return forward, backward, spacing

    def plan(self) -> dict[str, Any]:
        """The plans; raises CorpusError where network and data set do not go together."""
        shapes = np.median(np.array(self.dataset_fingerprint["shapes_after_crop"]), 0)
        if self.spec.ndim == 3 and shapes.min() < 2:
            raise CorpusError(
                f"{self.dataset_name} holds 2-D images, and the checkpoint's network is one for volumes. Use a checkpoint of "
                f"a 2-D network; nnUNetv2_pretrain {dataset_id(self.dataset_name)} -p nnUNetPlans -c 2d makes one."
            )
        forward, backward, spacing = self.choose_geometry()
        resampled = self.resampled_shapes(spacing[backward])[:, forward]
        configuration = self.plan_configuration(spacing, resampled)
        plans = self.assemble(forward, backward, {self.configuration: configuration})
        configuration["data_identifier"] = data_identifier(plans, configuration, self.dataset_json)
        return json.loads(json.dumps(plans))

    def plan_configuration(self, spacing: np.ndarray, shapes: np.ndarray) -> dict[str, Any]:
        """3d_fullres or 2d for images of `shapes` [N, 3] at `spacing` [mm], both transposed."""
        spacing, median_shape = spacing[-self.spec.ndim :], np.median(shapes, 0)[-self.spec.ndim :]
        patch_size = self.choose_patch(spacing, median_shape)
        warning = padding_warning(patch_size, shapes[:, -self.spec.ndim :].tolist(), max(self.spec.stride))
        if warning:
            print(warning)
        schemes, use_mask = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        if self.adapt == "like_pretrained":
            before, names = self.conventions.normalization, self.dataset_json["channel_names"].values()
            own = bool(before) and are_per_image(before)
            schemes = schemes_like([str(n) for n in names], before) if own else choose_schemes(schemes, before)
        return {
            "data_identifier": "",
            "preprocessor_name": self.preprocessor_name,
            "batch_size": self.wishes.batch_size or self.conventions.batch_size or BATCH_SIZE,
            "patch_size": patch_size,
            "median_image_size_in_voxels": median_shape.tolist(),
            "spacing": [float(s) for s in spacing],
            "normalization_schemes": schemes,
            "use_mask_for_norm": use_mask,
            **self.resampling_entries(),
            "architecture": self.spec.architecture(patch_size),
            "batch_dice": self.spec.ndim == 2,  # as nnU-Net does: a slice often holds nothing of a class
        }

    def choose_patch(self, spacing: np.ndarray, median_shape: np.ndarray) -> list[int]:
        """Patch size [voxels]: the user's, the pre-training's, or one of as many voxels in the data set's proportions."""
        stride, shape = self.spec.stride, median_shape.tolist()
        if self.wishes.patch_size is not None:
            return require_fitting_patch(self.wishes.patch_size, stride)
        wanted = self.conventions.finetuning_patch_size
        if wanted is None or len(wanted) != len(stride):
            wanted = (DEFAULT_EDGE,) * len(stride)
            print(f"The file states no patch size for fine-tuning; {shape_text(wanted)} voxels assumed.")
        if self.adapt == "like_pretrained":
            return patch_like(wanted, shape, stride)
        return patch_within_budget(spacing.tolist(), shape, stride, float(np.prod(wanted)))


def choose_schemes(own: Sequence[str], pretraining: Sequence[str]) -> list[str]:
    """Normalisation per channel like the pre-training's, where that makes sense; the data set's own elsewhere.

    CTNormalization is for Hounsfield units only: it is neither put on a channel nor taken off one. A pre-training whose
    channels differed says nothing about these.
    """
    common = set(pretraining)
    if len(common) != 1 or common == {"CTNormalization"} or next(iter(common)).startswith("unknown"):
        return list(own)
    scheme = common.pop()
    return [name if name == "CTNormalization" else scheme for name in own]


def data_identifier(plans: dict[str, Any], configuration: dict[str, Any], dataset_json: dict[str, Any]) -> str:
    """Name of the folder of preprocessed images, the same for all plans whose images are the same."""
    settings = {k: v for k, v in relevant_settings(plans, configuration, dataset_json).items() if k != "labels"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    resampled = configuration["resampling_fn_data"] != "no_resampling_hack"
    spacing = "x".join(f"{s:.3g}" for s in configuration["spacing"]) + "mm" if resampled else "not_resampled"
    schemes = "_".join(dict.fromkeys(s.removesuffix("Normalization") for s in configuration["normalization_schemes"]))
    return f"nnUNetFinetune_{spacing}_{schemes}_{digest}"
