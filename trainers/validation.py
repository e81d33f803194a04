"""What a pre-trained network makes of the held-out cases: pictures and errors instead of segmentations."""

from __future__ import annotations

import json
import os
from os.path import join
from statistics import fmean
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch

from nnunet_ssl.report.pictures import draw_preview
from nnunet_ssl.trainers.data import VALIDATION, Corpus, derive_seed
from nnunet_ssl.trainers.loading import corpus_sources
from nnunet_ssl.trainers.precision import autocast

if TYPE_CHECKING:
    from nnunet_ssl.trainers.ssl_trainer import SSLTrainer

MAX_PICTURES = 20


def validate_cases(trainer: SSLTrainer) -> None:
    """Write `validation/summary.json` (loss and terms per case, and their means) and pictures of the first cases.

    Each case is seen through the centre of the image, corrupted by random numbers that depend on its name alone, so
    that two runs with the same patch size can be compared case by case. Only the first process works.
    """
    if trainer.local_rank != 0:
        return
    _, identifiers = trainer.do_split()
    corpus, folder = Corpus(corpus_sources(trainer), identifiers), join(trainer.output_folder, "validation")
    os.makedirs(folder, exist_ok=True)
    trainer.network.eval()
    cases: dict[str, Any] = {}
    for number, identifier in enumerate(corpus.identifiers):
        output = run_case(trainer, corpus, identifier)
        cases[identifier] = {"loss": output.loss.item(), **{k: v.item() for k, v in output.terms.items()}}
        if number < MAX_PICTURES:
            picture = join(folder, f"{identifier.replace('/', '__')}.png")
            draw_preview({k: v[0].cpu() for k, v in output.preview.items()}, picture, identifier)
    means = {k: fmean(c[k] for c in cases.values()) for k in next(iter(cases.values()))}
    with open(join(folder, "summary.json"), "w") as file:
        json.dump({"mean": means, "cases": cases}, file, indent=2)
    terms = ", ".join(f"{k} {v:.4f}" for k, v in means.items())
    trainer.print_to_log_file(f"Validation complete: {len(cases)} cases, {terms}. Pictures in {folder}")


@torch.no_grad()
def run_case(trainer: SSLTrainer, corpus: Corpus, identifier: str) -> Any:
    """Method output for the centre of a case, or of as many cases as the method fuses."""
    start, regions = corpus.identifiers.index(identifier), trainer.views.regions
    chosen = [corpus.identifiers[(start + i) % len(corpus.identifiers)] for i in range(regions)]
    crops = [corpus.centre_crop(i, trainer.views.region_size) for i in chosen]
    if trainer.settings.channels == "separate":
        crops = [{"image": c["image"][:1], "excluded": c["excluded"]} for c in crops]
    stacked = {k: torch.stack([c[k] for c in crops]) for k in ("image", "excluded")}
    batch = {k: (v if regions == 1 else v[None]).to(trainer.device) for k, v in stacked.items()}
    seed = derive_seed(trainer.settings.seed, VALIDATION, crc32(identifier.encode()), 2)
    generator = torch.Generator(trainer.device).manual_seed(seed)
    with autocast(trainer.device):
        return trainer.method(trainer.method.prepare(batch, generator))
