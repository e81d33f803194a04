"""Every method learns on every backbone: a short training on real images beats what can be said without looking at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor
from torch.nn.functional import pad

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.methods import Method, get_method, method_names
from nnunet_ssl.planners.presets import Preset, primus, residual_encoder_unet
from nnunet_ssl.recipes import Recipe, build_optimizer
from nnunet_ssl.views.spec import Views

pytestmark = pytest.mark.slow

NETWORKS = {
    "unet": Preset(**residual_encoder_unet((8, 16, 32), (1, 1, 1)), patch_edge=16, batch_size=4),
    "primus": Preset(**primus(108, 2, 3, drop_path_rate=0.0), patch_edge=32, batch_size=4),
}
PATCH = {"unet": (16, 16, 16), "primus": (24, 32, 24)}
SEED = 0
WATCHED = 4  # draws of masks, crops and corruptions on which losses are computed


@dataclass(frozen=True)
class Case:
    """A training that takes seconds; configs differ from the recipes where those take more than seconds.

    gain: how far below the trivial solution the loss has to come, about two thirds of the least that three seeds
    reached. gap: how much more similar the same must be than the different. below, above: where named terms have to be
    in the end.
    """

    method: str
    backbone: str
    steps: int
    lr: float
    gain: float
    gap: float | None = None
    below: Mapping[str, float] = field(default_factory=dict)
    above: Mapping[str, float] = field(default_factory=dict)
    images: int = 4
    patch: tuple[int, ...] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


STILL = {"augmentation": 0.0}
ONLY_PAINTED = {"flip_probability": 0.0, "intensity_probability": 0.0}
CASES = (
    Case("mae", "unet", 35, 3e-3, gain=0.3, config={"mask_block": 4}),
    Case("mae", "primus", 90, 3e-3, gain=0.22, images=8),
    Case("simmim", "unet", 35, 3e-3, gain=0.3, config={"mask_block": 4}),
    Case("simmim", "primus", 90, 3e-3, gain=0.22, images=8),
    Case("spark3d", "unet", 25, 3e-3, gain=0.25),
    Case("models_genesis", "unet", 50, 3e-3, gain=0.35, config=ONLY_PAINTED),
    Case("models_genesis", "primus", 90, 3e-3, gain=0.18, config=ONLY_PAINTED),
    Case("volume_fusion", "unet", 120, 3e-3, gain=0.08, above={"accuracy": 0.765}, config={"levels": 2, **STILL}),
    Case(
        "volume_fusion", "primus", 150, 3e-3, gain=0.1, above={"accuracy": 0.765}, patch=(16, 24, 16),
        config={"levels": 2, **STILL},
    ),
    Case("simclr", "unet", 40, 1e-3, gain=0.45, gap=0.25, images=8, config=STILL),
    Case("simclr", "primus", 40, 1e-3, gain=0.5, gap=0.4, images=8, config=STILL),
    Case("voco", "unet", 130, 1e-3, gain=0.06, gap=0.1, images=3, config=STILL),
    Case("voco", "primus", 60, 1e-3, gain=0.09, gap=0.12, images=3, config=STILL),
    # Which way a patch is turned takes the tiny U-Net longer than this.
    Case("swin_unetr", "unet", 40, 2e-3, gain=0.7, gap=0.5, below={"contrast": 1.5}, above={"explained_variance": 0.45}),
    Case(
        "swin_unetr", "primus", 20, 1e-3, gain=0.9, gap=0.5, below={"contrast": 1.4, "rotation": 1.28},
        above={"explained_variance": 0.38},
    ),
    # Features of the same place in other images stay similar for long: the gap is small.
    Case(
        "consistent_views", "unet", 45, 3e-3, gain=0.28, gap=0.01, below={"alignment": 0.4, "contrast": 1.75},
        patch=(16, 24, 16), config={"mask_block": 4, "crop_size": (16, 16, 16), **STILL},
    ),
    Case(
        "consistent_views", "primus", 100, 3e-3, gain=0.15, gap=0.01, below={"alignment": 0.6, "contrast": 1.2}, images=3,
        config={"crop_size": (24, 24, 24), **STILL},
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def images(shared_data: Path) -> list[Tensor]:
    """Eight hippocampi [1, D, H, W], z-scored."""
    files = sorted((shared_data / "Dataset004_Hippocampus" / "imagesTr").glob("*.nii.gz"))[:8]
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.float32) for file in files]
    return [torch.from_numpy((a - a.mean()) / a.std()).unsqueeze(0) for a in arrays]


def centre(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """The middle of an image, padded where it is smaller."""
    missing = [max(want - have, 0) for want, have in zip(size, image.shape[1:], strict=True)]
    image = pad(image, [side for m in reversed(missing) for side in (m // 2, m - m // 2)])
    starts = [(have - want) // 2 for want, have in zip(size, image.shape[1:], strict=True)]
    return image[(slice(None), *(slice(s, s + want) for s, want in zip(starts, size, strict=True)))]


def make_batch(images: list[Tensor], views: Views) -> dict[str, Tensor]:
    """The middle of every image. A method that wants two regions gets the first half of the images paired with the
    second: were every image a foreground here and a background there, to tell them apart would take longer.
    """
    stacked = torch.stack([centre(image, views.region_size) for image in images])
    if views.regions == 2:
        stacked = torch.stack(stacked.chunk(2), dim=1)
    return {"image": stacked, "excluded": torch.zeros_like(stacked, dtype=torch.bool)}


def build(case: Case) -> tuple[Method, Views]:
    """A method on its tiny network, and what it wants to see."""
    torch.manual_seed(SEED)
    cls = get_method(case.method)
    config = cls.Config(**case.config)
    views = cls.views(config, case.patch or PATCH[case.backbone])
    parts = NETWORKS[case.backbone].architecture(views.network_size)
    network = get_network_from_plans(
        parts["network_class_name"],
        parts["arch_kwargs"],
        parts["_kw_requires_import"],
        1,
        cls.output_channels(config, 1),
    )
    if case.backbone == "unet":
        network.decoder.deep_supervision = False
    return cls(wrap_network(network, views.network_size), config), views


@torch.no_grad()
def watch(method: Method, batch: dict[str, Tensor]) -> dict[str, float]:
    """Loss, loss of the trivial solution and named terms; the same draws every time."""
    method.eval()
    generator, rows = torch.Generator().manual_seed(SEED + 1), []
    for _ in range(WATCHED):
        inputs = method.prepare(batch, generator)
        output = method(inputs)
        terms = {name: value.item() for name, value in output.terms.items()}
        rows.append({"loss": output.loss.item(), "trivial": float(method.yardstick(inputs)), **terms})
    method.train()
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def train(method: Method, batch: dict[str, Tensor], case: Case) -> None:
    """As the trainer does, without nnU-Net around it."""
    optimizer = build_optimizer(method.parameters(), Recipe("adamw", case.lr, 1e-2, 1, 0, 1.0))
    generator = torch.Generator().manual_seed(SEED)
    for step in range(case.steps):
        method.progress = step / case.steps
        with torch.no_grad():
            inputs = method.prepare(batch, generator)
        optimizer.zero_grad(set_to_none=True)
        output = method(inputs)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        method.after_step(output.statistics, torch.tensor(True))


def test_every_own_method_is_here_on_every_backbone():
    own = [m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
    assert {(c.method, c.backbone) for c in CASES} == {(m, b) for m in own for b in get_method(m).backbones}


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.method}-{c.backbone}")
def test_beats_the_trivial_solution_without_collapse(case: Case, images: list[Tensor]):
    method, views = build(case)
    batch = make_batch(images[: case.images], views)
    start = watch(method, batch)
    before = {n: p.detach().clone() for n, p in method.named_parameters() if p.requires_grad}
    train(method, batch, case)
    end = watch(method, batch)
    assert [n for n, p in method.named_parameters() if n in before and torch.equal(p, before[n])] == []
    assert end["trivial"] == pytest.approx(start["trivial"])
    assert end["loss"] < end["trivial"] - case.gain, (start, end)
    # Embeddings of a network nobody trained differ, too: the loss must also have come down from there.
    assert end["loss"] < start["loss"] - case.gain / 2, (start, end)
    if case.gap is not None:
        assert end["positive_similarity"] - end["negative_similarity"] > case.gap, end
        assert end["spread"] > 0.5, end  # 0: all embeddings are equal, 1: spread evenly
        assert end["effective_rank"] > 1.1, end  # 1: they lie on a line
    for name, bound in case.below.items():
        assert end[name] < bound, (name, end)
    for name, bound in case.above.items():
        assert end[name] > bound, (name, end)
