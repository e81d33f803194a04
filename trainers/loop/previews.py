"""Pictures of what the network was given and what it made of it, with what the images' files say about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from nnunet_ssl.report.pictures import draw_preview
from nnunet_ssl.trainers.context import RunContext
from nnunet_ssl.trainers.data.geometry import geometry_of, grey_scale_of


def draw_sample(trainer: RunContext, preview: Mapping[str, Tensor], key: str, path: str, title: str) -> None:
    """Draw the preview [C, *spatial] of a sample, with the orientation and the units of the images that `key` names."""
    scale = grey_scale_of(trainer.plans_manager, trainer.configuration_manager)
    geometry = replace(geometry_of(trainer, key), turned=not trainer.method_class.keeps_orientation)
    draw_preview(preview, path, title, geometry, scale)
