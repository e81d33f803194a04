"""What a run shows of itself: pictures with what the images' files say about them, and the page report.html."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from nnunet_ssl.integration.versions import is_first
from nnunet_ssl.report.attempt import attempt_to_draw
from nnunet_ssl.report.pictures import draw_preview
from nnunet_ssl.report.run_page import write_report
from nnunet_ssl.report.volumes import write_volumes
from nnunet_ssl.trainers.context import RunContext
from nnunet_ssl.trainers.data.geometry import geometry_of, grey_scale_of


def draw_sample(trainer: RunContext, preview: Mapping[str, Tensor], key: str, path: str, title: str) -> None:
    """Draw the preview [C, *spatial] of a sample, with the orientation and the units of the images that `key` names."""
    scale = grey_scale_of(trainer.plans_manager, trainer.configuration_manager)
    geometry = replace(geometry_of(trainer, key), turned=not trainer.method.keeps_orientation)
    draw_preview(preview, path, title, geometry, scale)


def write_sample(trainer: RunContext, preview: Mapping[str, Tensor], key: str, folder: str) -> None:
    """Write the preview of a sample as NIfTI images, a file per entry, into a folder."""
    geometry = replace(geometry_of(trainer, key), turned=not trainer.method.keeps_orientation)
    write_volumes(preview, folder, geometry)


def update_report(trainer: RunContext) -> None:
    """Write report.html anew, by the first process; where that fails, the log says so once and the run goes on."""
    if is_first():
        what = "report.html cannot be written"
        attempt_to_draw(trainer.print_to_log_file, write_report, trainer.output_folder, trainer.log_file, what=what)
