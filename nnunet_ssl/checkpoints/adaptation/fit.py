"""Decide, tensor by tensor, which values of a checkpoint a network gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation.channels import fit_channels, mix_channels, mixing_by_name
from nnunet_ssl.checkpoints.adaptation.kernels import fit_kernel
from nnunet_ssl.checkpoints.adaptation.layout import Entry, Layout
from nnunet_ssl.checkpoints.adaptation.position_embedding import (
    cubic_grid,
    first_fitting,
    grid_of,
    resize_position_embedding,
)
from nnunet_ssl.checkpoints.adaptation.report import TransferReport
from nnunet_ssl.checkpoints.screening.content import WEIGHT_TYPES
from nnunet_ssl.errors import CheckpointError


class DoesNotFitError(Exception):
    """A tensor keeps its fresh initialisation, for the reason given."""


class Fit:
    """Answers for each tensor of the target network: which values, and were they adapted."""

    def __init__(
        self,
        layout: Layout,
        weights: Mapping[str, Tensor],
        transfer: str,
        channels: str,
        source_patch_size: Sequence[int] | None,
        target_patch_size: Sequence[int] | None,
        channel_names: tuple[Sequence[str] | None, Sequence[str] | None],
        image_channels: int | None,
        report: TransferReport,
    ) -> None:
        self.layout, self.weights, self.report = layout, weights, report
        self.transfer, self.channels = transfer, channels
        self.source_patch_size, self.target_patch_size = source_patch_size, target_patch_size
        state = layout.network.state_dict()
        self.input_channels = next((state[n].shape[1] for n in layout.input_projections if n in state), 0)
        self.image_channels = self.input_channels if image_channels is None else image_channels
        stem = next((weights[n] for n in layout.input_projections if n in weights), None)
        self.source_channels = stem.shape[1] if stem is not None and stem.ndim > 1 else self.image_channels
        self.mixing = self._mixing(*channel_names) if channels == "by_name" and stem is not None else None

    def __call__(self, entry: Entry) -> tuple[Tensor, bool]:
        """Values of the target's shape and type, and whether they were adapted; raises DoesNotFitError."""
        value = next((self.weights[name] for name in entry.names if name in self.weights), None)
        self._check_wanted(entry)
        if value is None:
            if entry.name.endswith((".gamma_1", ".gamma_2")) and f"{entry.name[:-8]}.norm1.weight" in self.weights:
                self.report.add_note("encoder: the checkpoint has no LayerScale, taken as 1 (what it computed)")
                return torch.ones_like(entry.tensor), True
            raise DoesNotFitError("not in the checkpoint")
        if not entry.tensor.is_floating_point() and value.dtype != entry.tensor.dtype:
            raise DoesNotFitError(f"the checkpoint holds {value.dtype}, the network {entry.tensor.dtype}")
        if entry.tensor.is_floating_point() and value.dtype not in WEIGHT_TYPES:
            raise CheckpointError(
                f"{entry.name} in the checkpoint holds {value.dtype}, expected floating point numbers of 16 to 64 bits. "
                "Quantised weights cannot be fine-tuned: use the checkpoint they were made from."
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{entry.name} in the checkpoint holds NaN or infinite values: that training had diverged. "
                "Use an earlier checkpoint of it."
            )
        if entry.group == "position embedding":
            fitted = self._position_embedding(entry, value)
        elif value.shape == entry.tensor.shape and not (self._mixes() and self._sees_image(entry, value)):
            fitted = value
        elif entry.group != "heads" and isinstance(entry.module, (nn.Conv2d, nn.Conv3d)) and value.ndim > 3:
            fitted = self._convolution(entry, entry.module, value)
        else:
            raise DoesNotFitError(_shapes_differ(value, entry.tensor))
        return as_type(fitted, entry.tensor.dtype, entry.name), fitted is not value

    def _check_wanted(self, entry: Entry) -> None:
        if any(".seg_layers." in name for name in entry.names):
            raise DoesNotFitError("segmentation layers belong to a task")
        if entry.group in ("decoder", "heads") and self.transfer == "encoder":
            raise DoesNotFitError('transfer is "encoder"')
        if entry.group == "stem" and self.channels == "random" and self.source_channels != self.image_channels:
            raise DoesNotFitError(f"{self.source_channels} -> {self.image_channels} channels with channels random")

    def _convolution(self, entry: Entry, conv: nn.Conv2d | nn.Conv3d, weight: Tensor) -> Tensor:
        wanted = entry.tensor
        sees_image = self._sees_image(entry, weight)
        if weight.shape[0] != wanted.shape[0] or (weight.shape[1] != wanted.shape[1] and not sees_image):
            raise DoesNotFitError(_shapes_differ(weight, wanted))
        if weight.shape[2:] != wanted.shape[2:]:
            before, after = _times(weight.shape[2:]), _times(wanted.shape[2:])
            cuts_tokens = conv.kernel_size == conv.stride and max(conv.stride) > 1
            fitted = None if cuts_tokens else fit_kernel(weight, wanted.shape[2:])
            if fitted is None:
                raise DoesNotFitError(f"{'token size' if cuts_tokens else 'kernel'} {before} -> {after}")
            self.report.add_note(f"{entry.group}: kernels {before} -> {after} (collapsed axes summed, new ones zero)")
            weight = fitted
        if sees_image and self.mixing is not None:
            weight = mix_channels(weight, self.mixing)
        elif sees_image and weight.shape[1] != self.image_channels:
            self.report.add_note(f"stem: {weight.shape[1]} -> {self.image_channels} channels by {self.channels}")
            weight = fit_channels(weight, self.image_channels, self.channels)
        return self._with_labels(entry, weight) if sees_image else weight

    def _mixes(self) -> bool:
        """Whether weights that see the image change even where they have the network's shape."""
        return self.mixing is not None or self.input_channels != self.image_channels

    def _with_labels(self, entry: Entry, weight: Tensor) -> Tensor:
        """The weights with channels of 0 for the labels of a cascade's previous stage, of which no image knew."""
        labels = self.input_channels - self.image_channels
        if not labels:
            return weight
        self.report.add_note(
            f"stem: {labels} channels for the labels of the previous stage begin at 0, and are never frozen"
        )
        self.report.partly_fresh.append(entry.name)
        return torch.cat([weight, weight.new_zeros(weight.shape[0], labels, *weight.shape[2:])], dim=1)

    def _sees_image(self, entry: Entry, weight: Tensor) -> bool:
        """Whether a convolution takes the image itself; in stems of several, those inside may have as many channels."""
        wanted = entry.tensor
        if entry.group != "stem" or wanted.ndim < 4 or weight.ndim not in (wanted.ndim, wanted.ndim + 1):
            return False
        named = any(name in self.layout.input_projections for name in entry.names)
        inside = weight.shape[0] == weight.shape[1] and wanted.shape[0] == wanted.shape[1]
        fits = weight.shape[1] == self.source_channels and wanted.shape[1] == self.input_channels
        return fits and (named or not inside)

    def _mixing(self, source: Sequence[str] | None, target: Sequence[str] | None) -> Tensor:
        for whose, names, channels in (
            ("The checkpoint", source, self.source_channels),
            ("The data set", target, self.image_channels),
        ):
            if names is None or len(names) != channels:
                found = (
                    "does not name its channels" if not names else f"names {len(names)} channels ({', '.join(names)})"
                )
                raise CheckpointError(
                    f"{whose} {found}, but its network has {channels}, so channels by_name cannot work. Expected one name "
                    'per channel, as in dataset.json. Use channels "repeat" or "mean".'
                )
        mixing, notes = mixing_by_name(source or (), target or ())
        for note in notes:
            self.report.add_note(f"stem, by name: {note}")
        return mixing

    def _position_embedding(self, entry: Entry, embedding: Tensor) -> Tensor:
        wanted = entry.tensor
        if embedding.ndim != 3 or embedding.shape[-1] != wanted.shape[-1]:
            raise DoesNotFitError(_shapes_differ(embedding, wanted))
        if getattr(entry.module, "num_prefix_tokens", 0):
            if embedding.shape == wanted.shape:
                return embedding
            raise DoesNotFitError("position embeddings with register tokens are not interpolated")
        token_size = self._token_size()
        target_grid = self._target_grid(entry.module, wanted.shape[1], token_size)
        projection = next((self.weights[n] for n in self.layout.input_projections if n in self.weights), None)
        if token_size is None:  # a deeper patch embedding cuts tokens in several steps, equally in source and target
            token_size = grid_of(self.target_patch_size, target_grid)
        elif projection is not None:
            token_size = tuple(projection.shape[2:])
        candidates = [grid_of(self.source_patch_size, token_size), cubic_grid(embedding.shape[1], len(target_grid))]
        source_grid = first_fitting(embedding.shape[1], candidates)
        if source_grid is None:
            if embedding.shape == wanted.shape:
                self.report.add_note(f"position embedding: token grid unknown, taken as {_times(target_grid)}")
                return embedding
            raise CheckpointError(
                f"The grid of the checkpoint's {embedding.shape[1]} position embeddings is unknown: it is no cube, and "
                f"not a patch of {self.source_patch_size} in tokens of {token_size} voxels. Expected the "
                'pre-training patch size as patch_size in the checkpoint\'s "ssl" block, as pretrain_patch_size in its '
                "nnssl_adaptation_plan, or as source_patch_size."
            )
        if source_grid == target_grid:
            return embedding
        self.report.add_note(f"position embedding: {_times(source_grid)} -> {_times(target_grid)} tokens")
        return resize_position_embedding(embedding, source_grid, target_grid)

    def _token_size(self) -> tuple[int, ...] | None:
        """Voxels per token of the target where one convolution cuts them, None for deeper patch embeddings."""
        conv = self.layout.network.get_submodule(self.layout.input_projections[0].removesuffix(".weight"))
        if not isinstance(conv, (nn.Conv2d, nn.Conv3d)) or conv.kernel_size != conv.stride:
            return None
        return tuple(conv.kernel_size)

    def _target_grid(
        self, transformer: nn.Module, num_tokens: int, token_size: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        rotary_grid = getattr(getattr(transformer, "rope", None), "feat_shape", None)
        candidates = [rotary_grid, grid_of(self.target_patch_size, token_size), cubic_grid(num_tokens, 3)]
        grid = first_fitting(num_tokens, candidates)
        if grid is None:
            raise CheckpointError(
                f"The network's position embedding has {num_tokens} tokens, which does not fit a patch size of "
                f"{self.target_patch_size}. Expected target_patch_size: the voxels the network was built for."
            )
        return grid


def as_type(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The values as another type; raises CheckpointError where they are too large for it, and would become infinite."""
    converted = value.to(dtype)
    if value.dtype != dtype and torch.isfinite(value).all() and not torch.isfinite(converted).all():
        raise CheckpointError(
            f"{name} in the checkpoint holds values beyond the range of {dtype}, up to {value.abs().max():.3g}: no "
            "training leaves such weights. The file is damaged; download or export it again."
        )
    return converted


def _shapes_differ(have: Tensor, wanted: Tensor) -> str:
    return f"shapes differ: checkpoint {tuple(have.shape)}, network {tuple(wanted.shape)}"


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
