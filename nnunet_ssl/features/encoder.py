"""`nnunet_ssl.load_encoder`: a pre-trained encoder that takes tensors, or files of images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.checkpoints.description.conventions import Conventions, read_conventions
from nnunet_ssl.checkpoints.hub.resolve import Origin, resolve_source
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.features.placed_map import PlacedMap, joined
from nnunet_ssl.features.preparation import Files, Preparation, Prepared
from nnunet_ssl.features.windows import OVERLAP, blended_map
from nnunet_ssl.integration.load_network import build_with_weights
from nnunet_ssl.planners.finetuning.finetune_geometry import patch_like

ALL = "all"


class Encoder(nn.Module):
    """A pre-trained encoder. Called with images [B, C, *spatial] it gives feature maps, finest first: [B, C_i, *spatial_i].

    Such tensors are prepared already, and fit: for a U-Net their sizes are multiples of `stride`, for a transformer they are
    `patch_size`. `embed` and `map_of` take files, of any size, and prepare them as the weights expect (`preparation`).

    conventions: what the checkpoint says of its images: spacing [mm], patch [voxels], normalisation, channels. origin: where it
    came from. feature_channels, feature_strides [voxels per position]: per feature map. report: what became of every weight.
    """

    def __init__(
        self,
        network: Any,
        patch_size: Sequence[int],
        conventions: Conventions,
        preparation: Preparation,
        origin: Origin,
    ) -> None:
        super().__init__()
        self.backbone = wrap_network(network, patch_size)
        self.conventions, self.preparation, self.origin = conventions, preparation, origin
        self.report = network.nnunet_ssl_transfer_report
        self.patch_size, self.stride = self.backbone.patch_size, self.backbone.stride
        self.feature_channels, self.feature_strides = self.backbone.feature_channels, self.backbone.feature_strides

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps [B, C_i, *spatial_i] of images [B, C, *spatial], finest first."""
        return self.backbone.features(x)

    def embed(
        self,
        image: Files | np.ndarray,
        *,
        layer: int | str = -1,
        pool: Sequence[str] = ("mean",),
        spacing: Sequence[float] | None = None,
        modality: str | None = None,
        overlap: float = OVERLAP,
    ) -> Tensor:
        """Features [C] of a whole image, on the CPU; nothing in them is learned but the encoder.

        image: a file (whatever nnU-Net or `nnUNetv2_pretrain_import` reads), one file per channel, or an array [C, D, H, W]
        with its `spacing` [mm per axis]. layer: which feature map, from 0 (the finest) or -1 (the coarsest); "all" puts those of
        all one after the other. pool: "mean", "max", one after the other. modality: for weights whose images were normalised
        each by its kind, e.g. "CT" or "T1w". overlap: of the windows that large images are cut into.

        Raises UnusableImage for what cannot be read or used.
        """
        prepared = self.prepare(image, spacing=spacing, modality=modality)
        return torch.from_numpy(joined([m.pooled(pool) for m in self.maps_of(prepared, layer, overlap=overlap)]))

    def map_of(
        self,
        image: Files | np.ndarray,
        *,
        layer: int = -1,
        spacing: Sequence[float] | None = None,
        modality: str | None = None,
        overlap: float = OVERLAP,
    ) -> PlacedMap:
        """The feature map of a whole image, and where it lies in the patient; arguments as in `embed`."""
        (found,) = self.maps_of(self.prepare(image, spacing=spacing, modality=modality), layer, overlap=overlap)
        return found

    def prepare(
        self, image: Files | np.ndarray, *, spacing: Sequence[float] | None = None, modality: str | None = None
    ) -> Prepared:
        """An image as the weights expect it; arguments as in `embed`."""
        if isinstance(image, np.ndarray):
            if spacing is None or len(spacing) != 3 or image.ndim not in (3, 4):
                raise SettingsError(
                    f"An array [C, D, H, W] or [D, H, W] needs its spacing, three numbers [mm]; found {image.ndim} axes and "
                    f"spacing {spacing}."
                )
            return self.preparation.prepare(
                image if image.ndim == 4 else image[None], {"spacing": [float(s) for s in spacing]}, modality=modality
            )
        return self.preparation.read(image, modality=modality)

    @torch.inference_mode()
    def maps_of(
        self, prepared: Prepared, layer: int | str = -1, *, overlap: float = OVERLAP, batch_size: int = 1
    ) -> list[PlacedMap]:
        """Feature maps of a prepared image: of one layer, or of "all". In evaluation mode, whatever mode the encoder is in."""
        layers = self.layers_of(layer)
        device = next(self.parameters()).device
        image = torch.from_numpy(prepared.image).to(device)
        flat = self.backbone.ndim == 2  # slices, one by one
        ones = (1,) if flat else ()
        stride, patch = (*ones, *self.stride), (*ones, *self.patch_size)
        if self.backbone.kind == "unet":  # takes any size: no more of it than the image has
            patch = (*ones, *patch_like(self.patch_size, image.shape[1 + len(ones) :], self.stride))
        strides = [(*ones, *self.feature_strides[number]) for number in layers]

        def encode(crops: Tensor) -> list[Tensor]:
            found = self(crops[:, :, 0] if flat else crops)
            return [m[:, :, None] for m in found] if flat else found

        training = self.training
        self.eval()
        try:
            maps, before = blended_map(
                encode, image, patch, stride, layers, strides, overlap=overlap, batch_size=batch_size
            )
        finally:
            self.train(training)
        return [
            PlacedMap(found.cpu().numpy(), by, before, prepared.placement)
            for found, by in zip(maps, strides, strict=True)
        ]

    def layers_of(self, layer: int | str) -> list[int]:
        """Numbers of the feature maps that `layer` means; raises SettingsError for one that there is not."""
        number = len(self.feature_channels)
        if layer == ALL:
            return list(range(number))
        try:
            chosen = int(layer)
        except ValueError:
            chosen = number
        if not -number <= chosen < number:
            raise SettingsError(
                f"layer is 0 (the finest feature map) to {number - 1}, -1 for the coarsest, or all; found {layer!r}.",
                found=layer,
            )
        return [chosen % number]


def load_encoder(
    weights: str | os.PathLike[str],
    *,
    input_channels: int | None = None,
    patch_size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    normalization: str | None = None,
    stem: str | None = None,
) -> Encoder:
    """The encoder of a checkpoint of any origin, on the CPU, in evaluation mode.

    weights: whatever -pretrained_weights takes: a file, a folder, an address on the Hugging Face Hub, a known model's name.
    input_channels: of the images, by default those of the checkpoint; the first layer is adapted to others as in fine-tuning.
    patch_size [voxels]: what it sees at once, by default what it was trained with. spacing [mm, the network's axes] and
    normalization (an nnU-Net scheme): of the images, by default as the checkpoint says. stem: of weights with one for every data
    set, its id or number, or "mean".

    Raises CheckpointError where the file cannot be found or read, or too little of it fits.
    """
    source = resolve_source(weights)
    return encoder_of(
        read_checkpoint(source.path),
        source.origin,
        input_channels=input_channels,
        patch_size=patch_size,
        spacing=spacing,
        normalization=normalization,
        stem=stem,
    )


def encoder_of(
    checkpoint: Mapping[str, Any],
    origin: Origin,
    *,
    input_channels: int | None = None,
    patch_size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    normalization: str | None = None,
    stem: str | None = None,
) -> Encoder:
    """That of a checkpoint that is open; arguments as in `load_encoder`."""
    network, size = build_with_weights(
        checkpoint, origin, input_channels=input_channels, patch_size=patch_size, stem=stem
    )
    conventions, channels = read_conventions(checkpoint), wrap_network(network, size).in_channels
    preparation = Preparation.like_pretraining(checkpoint, conventions, len(size), channels, spacing, normalization)
    return Encoder(network, size, conventions, preparation, origin).eval()
