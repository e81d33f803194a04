"""What of a checkpoint goes into a network, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransferOptions:
    """Wishes of whoever loads pre-trained weights; their meaning is that of the arguments of `adapt`."""

    transfer: str = "encoder"  # or "encoder+decoder"
    channels: str = "repeat"  # or "mean", "by_name", "random"
    target_patch_size: tuple[int, ...] | None = None  # voxels
    target_channel_names: tuple[str, ...] | None = None  # for channels "by_name": dataset.json's, in order
    stem: str | None = None  # of a checkpoint with a stem for every data set; None: see `choose_stem`
    image_channels: int | None = (
        None  # of the network's input; the rest are labels of a cascade's previous stage. None: all
    )
