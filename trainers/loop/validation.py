"""What a pre-trained network makes of the held-out cases: pictures and errors instead of segmentations."""

from __future__ import annotations

import os
from os.path import join
from statistics import fmean
from typing import Any
from zlib import crc32

import torch
from torch import distributed as dist

from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.integration.versions import is_first, process_number
from nnunet_ssl.messages import counted
from nnunet_ssl.methods.base import MethodOutput
from nnunet_ssl.report.attempt import attempt_to_draw
from nnunet_ssl.trainers.context import RunContext
from nnunet_ssl.trainers.data.corpus import VALIDATION, Corpus, derive_seed
from nnunet_ssl.trainers.data.loading import corpus_datasets
from nnunet_ssl.trainers.data.patches import JOINED
from nnunet_ssl.trainers.distributed.processes import gathered, patient_group, wait_for_all
from nnunet_ssl.trainers.loop.previews import draw_sample
from nnunet_ssl.trainers.loop.stepping import run_prepared
from nnunet_ssl.trainers.loop.stopping import stop_validating_if_asked

MAX_PICTURES = 20
GROUP = 4  # cases that are seen together where the loss compares images


def validate_cases(trainer: RunContext) -> None:
    """Write `validation/summary.json` (loss and terms per case, and their means) and pictures of the first cases.

    Each case is seen through the centre of the image, corrupted by random numbers that depend on its name alone, so
    that two runs with the same patch size can be compared case by case. Where the loss compares or fuses images, a case is
    seen together with the next ones in the alphabet, and its figures are those of this group. Several processes take the
    cases in turn, with the same results as one; where states are sharded, all work on the same cases. The first process
    writes the summary, and all wait for it: whoever left before would end the group under those who still work.
    """
    group = patient_group()
    training, held_out = trainer.do_split()
    companions = companions_of(trainer, sorted(held_out), sorted(training))
    corpus = Corpus(corpus_datasets(trainer), [*held_out, *training])
    folder = join(trainer.output_folder, "validation")
    os.makedirs(folder, exist_ok=True)
    trainer.network.eval()
    first, shared = is_first(), trainer.is_ddp and not trainer.settings.shard
    turns = dist.get_world_size() if shared else 1
    own: dict[str, Any] = {}
    with trainer.compiler.switched_off():  # of another batch size, the network would be compiled once more for these
        for number, (identifier, others) in enumerate(companions.items()):
            if number % turns == 0:
                stop_validating_if_asked(trainer)
            if shared and number % turns != process_number():
                continue
            output = run_case(trainer, corpus, [identifier, *others])
            own[identifier] = {"loss": output.loss.item(), **{k: v.item() for k, v in output.terms.items()}}
            if number < MAX_PICTURES and (first or shared):
                picture = join(folder, f"{identifier.replace('/', '__')}.png")
                shown = {k: v[0].cpu() for k, v in output.preview.items()}
                key = JOINED.join([identifier, *others][: trainer.views.regions])
                attempt_to_draw(trainer.print_to_log_file, draw_sample, trainer, shown, key, picture, identifier)
    results = gathered(own, group)
    if first:
        write_summary(trainer, {identifier: results[identifier] for identifier in companions}, folder)
    wait_for_all(group)


def summary_file(folder: str) -> str:
    """Where the figures of a run in `folder` go; that it is there says that the final validation was made."""
    return join(folder, "validation", "summary.json")


def write_summary(trainer: RunContext, cases: dict[str, dict[str, float]], folder: str) -> None:
    """Write the figures of the cases and their means, and put the means into the log."""
    means = {k: fmean(c[k] for c in cases.values()) for k in next(iter(cases.values()))}
    write_json({"mean": means, "cases": cases}, join(folder, "summary.json"))
    terms = ", ".join(f"{k} {v:.4f}" for k, v in means.items())
    trainer.print_to_log_file(f"Validation complete: {counted(len(cases), 'case')}, {terms}. Pictures in {folder}")


def companions_of(trainer: RunContext, held_out: list[str], training: list[str]) -> dict[str, list[str]]:
    """For every held-out case the cases it is fused or compared with: held-out ones, training cases where these are few.

    A message in the log says when there are too few cases for the loss to mean anything.
    """
    regions, needed = trainer.views.regions, trainer.method.images_needed
    wanted = regions if needed == 1 else max(GROUP, needed) * regions
    pool = held_out if len(held_out) >= wanted else held_out + [i for i in training if i not in held_out]
    if len(pool) < regions * needed:
        trainer.print_to_log_file(
            f"WARNING: {trainer.method_name} fuses or compares images, and there is only one. Its validation loss is that "
            "of the image with itself and says nothing about the network. More images are needed, in training as well."
        )
    size = min(wanted, len(pool)) // regions * regions or regions
    return {i: [pool[(pool.index(i) + n) % len(pool)] for n in range(1, size)] for i in held_out}


@torch.no_grad()
def run_case(trainer: RunContext, corpus: Corpus, identifiers: list[str]) -> MethodOutput:
    """Method output for the centres of the given cases, seen together; the picture is that of the first one."""
    crops = [corpus.centre_crop(i, trainer.views.region_size) for i in identifiers]
    if trainer.settings.channels == "separate":
        crops = [{"image": c["image"][:1], "excluded": c["excluded"]} for c in crops]
    regions = trainer.views.regions
    stacked = {k: torch.stack([c[k] for c in crops]).to(trainer.device) for k in ("image", "excluded")}
    batch = {k: v if regions == 1 else v.unflatten(0, (-1, regions)) for k, v in stacked.items()}
    seed = derive_seed(trainer.settings.seed, VALIDATION, crc32(identifiers[0].encode()), 2)
    generator = torch.Generator(trainer.device).manual_seed(seed)
    inputs, images = trainer.method.prepare(batch, generator), len(batch["image"])
    # One image at a time, as far as the loss allows: training may not have had the memory for more.
    return run_prepared(trainer, inputs, images, images if trainer.method.compares else 1, seed)
