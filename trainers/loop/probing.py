"""When is a pre-training long enough? What a linear model finds in the frozen features of labelled images, every few epochs.

The images are those of a raw data set that the setting `probe` names. With a table targets.csv in its folder, every target is
told from the mean of the features over the image (`targets/probe.py`); without, its segmentations are told place by place. Seen
is the centre of every image, a patch of it, so that a probe costs as much as a few steps. It draws no random numbers and changes
no weight: the training goes on as if there were none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from nnunet_ssl.corpus.folders import find_raw_dataset
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.features.extraction import read_scan
from nnunet_ssl.messages import counted
from nnunet_ssl.report.progress import PROBE
from nnunet_ssl.targets.measures import MAIN
from nnunet_ssl.targets.probe import STRENGTHS, probe
from nnunet_ssl.trainers.context import RunContext
from nnunet_ssl.trainers.data.loading import corpus_datasets
from nnunet_ssl.trainers.data.probe_images import (
    Shown,
    block_means,
    centre,
    chosen_places,
    chosen_scans,
    preparation_of,
    targets_of,
)

FEWEST = 10  # images


class Probe:
    """The images of a probe, read once; in the first process of a run alone."""

    def __init__(self, trainer: RunContext) -> None:
        name = trainer.settings.probe
        scans = chosen_scans(name)
        self.dataset, self.targets = str(name), targets_of(str(name), scans)
        self.labelled = not self.targets
        preparation = preparation_of(trainer)
        left_out, self.shown, clock = 0, list[Shown](), time.monotonic()
        for scan in scans:
            prepared = read_scan(preparation, scan, self.labelled)
            if isinstance(prepared, str):
                left_out += 1
                continue
            channels = trainer.num_input_channels
            if len(prepared.image) < channels:
                raise CorpusError(
                    f"The probe's images have {counted(len(prepared.image), 'channel')}, the network takes {channels}."
                )
            self.shown.append(centre(scan, prepared.image[:channels], prepared.labels, trainer.views.region_size))
        if len(self.shown) < FEWEST:
            raise CorpusError(
                f"{len(self.shown)} of {len(scans)} images of {self.dataset} can be used for the probe, and {FEWEST} are needed. "
                "Leave out --probe, or name another data set."
            )
        every = trainer.settings.probe_every
        often = "after every epoch" if every == 1 else f"every {every} epochs"
        what = ", ".join(target.name for target in self.targets) or "its segmentations"
        same = " They are in the corpus too; their labels are not." if self._in(trainer) else ""
        few = f" {left_out} cannot be used." if left_out else ""
        trainer.print_to_log_file(
            f"Probe: {often} a linear model tells {what} from frozen features of "
            f"{counted(len(self.shown), 'image')} of {self.dataset}.{few}{same} Read in {time.monotonic() - clock:.0f} s; "
            f"{sum(shown.bytes for shown in self.shown) / 1e9:.2g} GB of memory."
        )

    def _in(self, trainer: RunContext) -> bool:
        return find_raw_dataset(self.dataset) in [find_raw_dataset(d.name) for d in corpus_datasets(trainer)]

    @torch.inference_mode()
    def run(self, trainer: RunContext) -> dict[str, float]:
        """{what is told: how well}: AUROC or R2 of a target; of structures the mean Dice of their shares of the places."""
        with evaluating(trainer.method):
            return self._segmentation(trainer) if self.labelled else self._targets(trainer)

    def _targets(self, trainer: RunContext) -> dict[str, float]:
        features, subjects = {}, {shown.scan.case: shown.scan.subject for shown in self.shown}
        for shown in self.shown:
            found, inside = encode(trainer, shown)
            weights = inside / max(inside.sum(), 1e-6)
            features[shown.scan.case] = (found * weights).reshape(len(found), -1).sum(axis=1)
        results = {}
        for target in self.targets:
            main = MAIN[target.kind]
            results[f"{target.name} {main}"] = probe(features, target, subjects, resamples=0).measures[main]["value"]
        return results

    def _segmentation(self, trainer: RunContext) -> dict[str, float]:
        people = sorted({str(shown.scan.subject) for shown in self.shown})
        fitting = set(people[::2])  # the same in every epoch
        values = sorted({int(v) for shown in self.shown if shown.labels is not None for v in np.unique(shown.labels)})
        rows, wanted = [], []
        for shown in self.shown:
            if str(shown.scan.subject) in fitting:
                found, shares = self._places(trainer, shown, values)
                places = chosen_places(shares)
                rows.append(found[places])
                wanted.append(shares[places])
        model = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS)).fit(np.concatenate(rows), np.concatenate(wanted))
        both, sums = np.zeros(len(values)), np.zeros(len(values))
        for shown in self.shown:
            if str(shown.scan.subject) not in fitting:
                found, shares = self._places(trainer, shown, values)
                told = np.clip(model.predict(found), 0, 1)
                both += np.minimum(told, shares).sum(axis=0)
                sums += told.sum(axis=0) + shares.sum(axis=0)
        dice = [2 * b / s for v, b, s in zip(values, both, sums, strict=True) if v > 0 and s > 0]
        return {"soft Dice": float(np.mean(dice)) if dice else math.nan}

    @staticmethod
    def _places(trainer: RunContext, shown: Shown, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(features [N, C], share of every label [N, labels]) of the places of an image."""
        found, inside = encode(trainer, shown)
        assert shown.labels is not None
        one_hot = np.stack([shown.labels == v for v in values]).astype(np.float32)
        shares = block_means(one_hot, found.shape[1:]).reshape(len(values), -1).T
        kept = inside.ravel() > 0
        return found.reshape(len(found), -1).T[kept], shares[kept]


def encode(trainer: RunContext, shown: Shown) -> tuple[np.ndarray, np.ndarray]:
    """(coarsest feature map [C, *grid], share of every place that is image [*grid]) of an image."""
    backbone = trainer.method.backbone
    size = backbone.patch_size if backbone.kind == "primus" else shown.image.shape[1:]
    image = shown.image
    if tuple(size) != tuple(image.shape[1:]):  # tasks that show crops to a network built for them
        again = centre(shown.scan, image.numpy(), shown.labels, tuple(size))
        image, shown = again.image, again
    found = backbone.features(image[None].to(trainer.device))[-1][0].float().cpu().numpy()
    return found, block_means(shown.inside[None], found.shape[1:])[0]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, for every part that was in training mode."""
    before = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in before:
            part.training = True


def probe_epoch(trainer: RunContext) -> None:
    """After an epoch that is due, or the last: curves, and a line with what it cost. A failure costs the probe, not the run."""
    if trainer.probe is None:
        return
    epoch, every = trainer.current_epoch, trainer.settings.probe_every
    due = (epoch + 1) % every == 0 or epoch == trainer.num_epochs - 1
    clock = time.monotonic()
    results = trainer.probe.run(trainer) if due else {}
    log = trainer.logger.local_logger.my_fantastic_logging
    for name in results or [key.removeprefix(PROBE).replace("_", " ") for key in list(log) if key.startswith(PROBE)]:
        trainer.logger.log(PROBE + name.replace(" ", "_"), results.get(name, math.nan), epoch)
    if results:
        seconds = time.monotonic() - clock
        kept = [e - s for s, e in zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=False)][
            -every:
        ]
        shown = ", ".join(f"{name} {value:.3f}" for name, value in results.items())
        trainer.print_to_log_file(
            f"Probe: {shown}; {seconds:.1f} s, {seconds / max(sum(kept), 1e-6):.1%} of the epochs since the last"
        )
