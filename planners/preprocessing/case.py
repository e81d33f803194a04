"""One case from its image to what is stored: nnU-Net's steps in nnU-Net's order, and where in it the body is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssl.corpus.check import check_image, check_resampled_shape
from nnunet_ssl.planners.preprocessing.cropping import crop_to_nonzero
from nnunet_ssl.planners.preprocessing.foreground import (
    AIR,
    LOCATIONS,
    SHARE,
    air_threshold,
    is_foreground,
    mask_labels,
    normalised_threshold,
    only_masks,
    sample_locations,
)
from nnunet_ssl.planners.preprocessing.normalization import MODALITY, OTHER, OWN, kinds_of_channels, scheme_of_image
from nnunet_ssl.planners.preprocessing.resampling_choice import faster


def preprocess_case(
    preprocessor: DefaultPreprocessor,
    data: np.ndarray,
    seg: np.ndarray | None,
    properties: dict[str, Any],
    plans: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
    *,
    training: bool,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """(image [C, D, H, W], labels [1, D, H, W], properties) as DefaultPreprocessor.run_case_npy makes them.

    With `training` the properties also tell where the body is (nnunet_ssl.planners.preprocessing.foreground).
    """
    labelled = seg is not None
    axes = [0, *(i + 1 for i in plans.transpose_forward)]
    data = np.array(data.transpose(axes), dtype=np.float32, order="C")  # a copy: inputs stay as they are
    seg = None if seg is None else np.array(seg.transpose(axes), order="C")
    own_spacing = [properties["spacing"][i] for i in plans.transpose_forward]
    properties["shape_before_cropping"] = data.shape[1:]
    data, seg, properties["bbox_used_for_cropping"] = crop_to_nonzero(data, seg)
    shape = properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
    # In 2-D configurations the spacing between slices stays.
    spacing = [*own_spacing[: len(shape) - len(configuration.spacing)], *configuration.spacing]
    new_shape = compute_new_shape(shape, own_spacing, spacing)

    data, thresholds = _normalise(preprocessor, data, seg, properties, plans, configuration, dataset_json, training)
    # The normalisation comes first: resampled, the borders of the non-zero region no longer fit the image exactly.
    data = faster(configuration.resampling_fn_data)(data, new_shape, own_spacing, spacing)
    seg = faster(configuration.resampling_fn_seg)(seg, new_shape, own_spacing, spacing)
    if preprocessor.verbose:
        print(f"{shape} voxels of {own_spacing} mm -> {tuple(int(n) for n in new_shape)} of {spacing} mm")

    anatomy, anonymised = mask_labels(dataset_json.get("labels", {}))
    if training:
        properties[AIR] = thresholds
        body = seg[0] == anatomy if labelled and anatomy is not None else None
        if body is None or not body.any():
            body = is_foreground(data, seg[0], thresholds)
            if labelled and anonymised is not None:
                body &= seg[0] != anonymised
        properties[SHARE] = float(body.mean())
        properties[LOCATIONS] = sample_locations(body)
    if labelled:
        if training and only_masks(dataset_json["labels"]):
            # nnU-Net's lists would be long, and name places in the defaced face as well.
            properties["class_locations"] = {} if anatomy is None else {anatomy: properties[LOCATIONS]}
        else:
            properties["class_locations"] = _class_locations(preprocessor, seg, plans, dataset_json)
            properties["class_locations"].pop(anonymised, None)
        seg = preprocessor.modify_seg_fn(seg, plans, dataset_json, configuration)
    return data, seg.astype(np.int16 if seg.max() > 127 else np.int8), properties


def reason_against(
    data: np.ndarray,
    seg: np.ndarray | None,
    properties: dict[str, Any],
    plans: PlansManager,
    configuration: ConfigurationManager,
) -> str | None:
    """Why an image as read [C, D, H, W] is of no use for these plans, None when it is."""
    flat = len(configuration.patch_size) == 2
    num_channels = len(configuration.normalization_schemes)
    reason = check_image(data, properties, num_channels=num_channels, flat_allowed=flat)
    if reason is None and seg is not None and seg.shape[1:] != data.shape[1:]:
        reason = f"image and label differ in shape: {list(data.shape[1:])} and {list(seg.shape[1:])}"
    if reason is not None or flat or configuration.resampling_fn_data.func is no_resampling_hack:
        return reason
    axes, spacing = plans.transpose_forward, configuration.spacing
    shape = [data.shape[1:][i] for i in axes]
    return check_resampled_shape(compute_new_shape(shape, [properties["spacing"][i] for i in axes], spacing), spacing)


def _normalise(
    preprocessor: DefaultPreprocessor,
    data: np.ndarray,
    seg: np.ndarray,
    properties: dict[str, Any],
    plans: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
    training: bool,
) -> tuple[np.ndarray, list[float | None]]:
    """The image and, per channel, the threshold below which its normalised values are air."""
    schemes = configuration.normalization_schemes
    names = dataset_json.get("channel_names") or dataset_json.get("modality") or {}
    channels = [str(names.get(str(i), "")) for i in range(len(data))]
    modality = properties.get(MODALITY)
    kinds = kinds_of_channels(channels, modality)
    chosen = [scheme_of_image(s, kind, registered=modality is not None) for s, kind in zip(schemes, kinds, strict=True)]
    if not training and not any(scheme in OWN for scheme in chosen):
        intensities = plans.foreground_intensity_properties_per_channel
        return preprocessor._normalize(data, seg, configuration, intensities), []
    anatomy, _ = mask_labels(dataset_json.get("labels", {}))
    masked = anatomy is not None and bool((seg[0] == anatomy).any())
    inside, result, thresholds = seg[0] >= 0, np.empty_like(data), []
    for number, channel in enumerate(data):
        scheme = chosen[number]
        threshold = air_threshold(channel, inside, OWN[scheme].kind if scheme in OWN else kinds[number] or OTHER)
        if scheme in OWN:
            body = seg[0] == anatomy if masked else is_foreground(channel[None], seg[0], [threshold])
            result[number] = OWN[scheme](False, {}).run(channel.copy(), seg[0], body)
        else:
            result[number] = _stock(preprocessor, number, plans, configuration, channel.copy(), seg[0])
        thresholds.append(normalised_threshold(channel, result[number], threshold))
    return result, thresholds


def _stock(
    preprocessor: DefaultPreprocessor,
    number: int,
    plans: PlansManager,
    configuration: ConfigurationManager,
    channel: np.ndarray,
    seg: np.ndarray,
) -> np.ndarray:
    """A channel as nnU-Net's own schemes, and those of other packages, normalise it."""
    only = SimpleNamespace(
        normalization_schemes=[configuration.normalization_schemes[number]],
        use_mask_for_norm=[configuration.use_mask_for_norm[number]],
    )
    intensities = {"0": plans.foreground_intensity_properties_per_channel[str(number)]}
    return preprocessor._normalize(channel[None], seg[None], only, intensities)[0]


def _class_locations(
    preprocessor: DefaultPreprocessor, seg: np.ndarray, plans: PlansManager, dataset_json: dict[str, Any]
) -> dict[Any, Any]:
    """nnU-Net's samples of where each class is, for its oversampling."""
    labels = plans.get_label_manager(dataset_json)
    collect = list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)
    if labels.has_ignore_label:
        collect.append([-1, *labels.all_labels])
    return preprocessor._sample_foreground_locations(seg, collect, verbose=preprocessor.verbose)
