"""Which part of which images a method wants to see."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Views:
    """What the loader reads for one sample, and what nnU-Net's augmentation does to it.

    region_size: voxels read from an image and handed to the method; all crops a method takes come from this region.
    network_size: voxels the network sees at once (a crop's size where a method crops, else the region's).
    regions: how many regions of different images make one sample (2 where images are fused).
    """

    region_size: tuple[int, ...]
    network_size: tuple[int, ...]
    regions: int = 1
    # Factor on nnU-Net's probabilities, 0: never. +-30 degrees (+-180 in plane for thin patches) and 0.7-1.4, p = 0.2 each.
    rotate_and_scale: float = 1.0
    mirror: bool = True  # every axis with p = 0.5
