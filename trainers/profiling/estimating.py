"""What can be said of a run from its plans alone: memory by counting, time from what was measured before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.corpus.overview.sections import as_text
from nnunet_ssl.integration.architecture import is_primus
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.recipes import pretraining, resolve
from nnunet_ssl.report.gpu_times import times_section
from nnunet_ssl.report.memory_fit import fit_section
from nnunet_ssl.settings.blocks import PretrainBlock
from nnunet_ssl.trainers.data.loading import share_of_batch
from nnunet_ssl.trainers.profiling.counting import CannotCount
from nnunet_ssl.trainers.profiling.fitting import fit


def estimate_by_counting(
    plans: Mapping[str, Any], configuration: str, method: str, backbone: str | None, processes: int
) -> str:
    """Two tables: which batch fits which GPU, and hours of the run where steps were measured.

    backbone: the name under which the table of times knows the plans' network, if it does. processes: that share the batch.
    Raises SettingsError for a batch that cannot be shared, and as `CountedStep` does.
    """
    manager = PlansManager(dict(plans)).get_configuration(configuration)
    block = PretrainBlock.read(manager.configuration, method_names(), configuration)
    settings, _ = block.of(method, get_method(method).Config)
    batch = share_of_batch(settings.batch_size or manager.batch_size, processes, settings.accumulate)
    sections, note = [], ""
    try:
        found = fit(plans, configuration, method, batch, processes, settings.shard)
        sections.append(fit_section(found, processes, settings.shard))
    except CannotCount as error:
        note = f"\n\nNote: {error}"
    epochs = resolve(pretraining(method), "primus" if is_primus(manager) else "unet", settings).num_epochs
    length = epochs, settings.num_iterations_per_epoch, settings.num_val_iterations_per_epoch
    sections.append(times_section(method, backbone, manager.patch_size, *length))
    return as_text(sections) + note
