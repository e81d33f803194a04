"""VolumeFusion: what is mixed, what the loss counts, that it learns to tell the mixtures apart."""

from math import exp, log

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.losses.segmentation_loss import accuracy, segmentation_loss
from nnunet_ssl.methods import volume_fusion
from nnunet_ssl.methods.volume_fusion import VolumeFusion, VolumeFusionConfig
from nnunet_ssl.settings.blocks import read_config
from nnunet_ssl.trainers.pretraining import SSLVolumeFusionTrainer

PATCH = (16, 24, 8)


def unet(channels: int = 1, ndim: int = 3, levels: int = 5) -> nn.Module:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    options = {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True}}
    return ResidualEncoderUNet(
        channels, 3, [8, 12, 16], conv, 3, [1, 2, 2], 1, levels, [1, 1], True, norm, nonlin=nn.LeakyReLU, **options
    )


def primus(channels: int = 1, levels: int = 5) -> nn.Module:
    return Primus(channels, 216, (8, 8, 8), levels, 2, 3, PATCH, init_values=0.1, scale_attn_inner=True)


def make(network: nn.Module, patch=PATCH, **config) -> VolumeFusion:
    torch.manual_seed(0)
    return VolumeFusion(wrap_network(network, patch), VolumeFusionConfig(**config))


def batch_of(patch=PATCH, channels: int = 1, size: int = 2) -> dict[str, torch.Tensor]:
    image = torch.randn(size, 2, channels, *patch, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(size, 2, 1, *patch, dtype=torch.bool)}


def prepared(method: VolumeFusion, batch, seed: int = 0) -> dict[str, torch.Tensor]:
    return method.prepare(batch, torch.Generator().manual_seed(seed))


def slow_loss(logits, labels, counted) -> tuple[float, float]:
    """Cross entropy and soft Dice, voxel by voxel."""
    entropy, number, coefficients = 0.0, 0, []
    for scores, truth, counts in zip(logits, labels, counted, strict=True):
        rows = scores.flatten(1).T.tolist()
        shared, predicted, present = ([0.0] * len(scores) for _ in range(3))
        for row, label, counts_here in zip(rows, truth.flatten().tolist(), counts.flatten().tolist(), strict=True):
            if not counts_here:
                continue
            total = sum(exp(score) for score in row)
            entropy -= log(exp(row[label]) / total)
            number += 1
            present[label] += 1
            shared[label] += exp(row[label]) / total
            predicted = [p + exp(score) / total for p, score in zip(predicted, row, strict=True)]
        parts = zip(shared, predicted, present, strict=True)
        coefficients += [(2 * s + 1e-5) / (p + t + 1e-5) for s, p, t in parts]
    return entropy / number, sum(coefficients) / len(coefficients)


@pytest.mark.parametrize("size", [(4, 5, 6), (7, 9), (3, 1, 8)])
@pytest.mark.parametrize("levels", [2, 5])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_loss_voxel_by_voxel(size, levels, share):
    generator = torch.Generator().manual_seed(levels)
    logits = 3 * torch.randn(3, levels, *size, generator=generator)
    labels = torch.randint(0, levels - 1, (3, 1, *size), generator=generator)  # one class is absent
    counted = torch.rand(3, 1, *size, generator=generator) >= share
    found = segmentation_loss(logits, labels, counted)
    entropy, dice = slow_loss(logits, labels, counted)
    assert found.cross_entropy.item() == pytest.approx(entropy, rel=1e-4)
    assert found.dice.item() == pytest.approx(dice, rel=1e-4)
    assert found.dice.item() == pytest.approx(
        -MemoryEfficientSoftDiceLoss(lambda x: x.softmax(1), smooth=1e-5, ddp=False)(logits, labels, counted).item(),
        rel=1e-4,
    )
    right, majority = accuracy(logits, labels, counted)
    chosen, truth = logits.argmax(1)[counted[:, 0]].tolist(), labels[counted].tolist()
    assert right.item() == pytest.approx(sum(c == t for c, t in zip(chosen, truth, strict=True)) / len(truth))
    assert majority.item() == pytest.approx(max(truth.count(k) for k in range(levels)) / len(truth))


def test_loss_of_the_truth_and_of_nothing():
    labels = torch.randint(0, 5, (2, 1, *PATCH), generator=torch.Generator().manual_seed(0))
    logits = 100.0 * (labels == torch.arange(5).view(1, 5, 1, 1, 1))
    perfect = segmentation_loss(logits.bfloat16(), labels, torch.ones_like(labels, dtype=torch.bool))
    assert perfect.cross_entropy.item() == pytest.approx(0, abs=1e-6)
    assert perfect.dice.item() == pytest.approx(1, abs=1e-6)
    assert perfect.dice.dtype == perfect.cross_entropy.dtype == torch.float32
    logits.requires_grad_()
    empty = segmentation_loss(logits, labels, torch.zeros_like(labels, dtype=torch.bool))
    (empty.cross_entropy - empty.dice).backward()
    assert empty.cross_entropy == 0
    assert not logits.grad.any()


def test_views_and_output():
    views = VolumeFusion.views(VolumeFusionConfig(), PATCH)
    assert (views.region_size, views.network_size, views.regions) == (PATCH, PATCH, 2)
    assert not views.rotate_and_scale
    assert views.mirror
    assert VolumeFusion.output_channels(VolumeFusionConfig(levels=9), 3) == 9
    assert SSLVolumeFusionTrainer.method_name == VolumeFusion.name


def test_validation_mixes_the_images_as_they_are():
    method, batch = make(unet()).eval(), batch_of()
    inputs = prepared(method, batch)
    alpha = inputs["level"] / 4
    foreground, background = batch["image"].unbind(1)
    assert torch.equal(inputs["foreground"], foreground)
    assert torch.equal(inputs["background"], background)
    torch.testing.assert_close(inputs["fused"], alpha * foreground + (1 - alpha) * background)
    assert set(inputs["level"].unique().tolist()) == {0, 1, 2, 3, 4}


def test_training_changes_intensities_before_mixing_and_leaves_the_batch_alone():
    method, batch = make(unet()), batch_of(size=30)
    original = batch["image"].clone()
    inputs = prepared(method, batch)
    assert torch.equal(batch["image"], original)
    changed = [inputs[name] != original[:, n] for n, name in enumerate(("foreground", "background"))]
    for change in changed:
        assert 10 < change.flatten(1).any(dim=1).sum() < 30  # each with about 0.65
    assert not torch.equal(*(c.flatten(1).any(dim=1) for c in changed))
    alpha = inputs["level"] / 4
    torch.testing.assert_close(inputs["fused"], alpha * inputs["foreground"] + (1 - alpha) * inputs["background"])
    method.config = VolumeFusionConfig(augmentation=0.0)
    assert torch.equal(prepared(method, batch)["foreground"], original[:, 0])


def test_resolution_is_lowered_as_often_as_in_the_recipe(monkeypatch):
    asked = []

    def record(x, generator, strength, low_resolution):
        asked.append((strength, low_resolution))
        return x

    monkeypatch.setattr(volume_fusion, "augment_intensity", record)
    prepared(make(unet(), augmentation=0.5), batch_of())
    assert asked == [(0.5, 0.25)]


@pytest.mark.parametrize("build", [unet, primus])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)])
def test_step_counts_no_voxel_excluded_in_either_image(build, weights):
    method = make(build(), ce_weight=weights[0], dice_weight=weights[1]).eval()
    batch = batch_of()
    batch["excluded"][:, 0, :, 3:9] = True
    batch["excluded"][:, 1, :, :, 20:] = True
    inputs = prepared(method, batch)
    counted = torch.ones(2, 1, *PATCH, dtype=torch.bool)
    counted[:, :, 3:9] = False
    counted[:, :, :, 20:] = False
    output = method(inputs)
    entropy, dice = slow_loss(method.backbone(inputs["fused"]), inputs["level"], counted)
    assert output.loss.item() == pytest.approx(weights[0] * entropy - weights[1] * dice, rel=1e-4)
    assert output.terms["ce"].item() == pytest.approx(entropy, rel=1e-4)
    assert output.terms["dice"].item() == pytest.approx(dice, rel=1e-4)


def test_preview_shows_the_task():
    method = make(unet(channels=2))
    inputs = prepared(method, batch_of(channels=2))
    preview = method(inputs).preview
    assert list(preview) == ["foreground", "background", "fused", "levels", "prediction", "excluded"]
    assert [v.shape[1] for v in preview.values()] == [2, 2, 2, 1, 1, 1]
    assert preview["levels"].dtype == preview["prediction"].dtype == torch.int64
    assert not any(v.requires_grad for v in preview.values())


@pytest.mark.parametrize("build", [unet, primus])
def test_gradients_reach_what_trains_and_nothing_else(build):
    method = make(build())
    method(prepared(method, batch_of())).loss.backward()
    assert not method.heads()
    without = {n for n, p in method.named_parameters() if p.grad is None}
    assert without == {n for n, p in method.named_parameters() if not p.requires_grad}
    assert all("seg_layers.0" in n for n in without)


@pytest.mark.parametrize("levels", [3, 9])
def test_two_dimensions_several_channels_batch_of_one(levels):
    method = make(unet(3, ndim=2, levels=levels), patch=(32, 24), levels=levels)
    output = method(prepared(method, batch_of((32, 24), channels=3, size=1)))
    assert output.preview["prediction"].shape == (1, 1, 32, 24)
    assert output.preview["levels"].max() == levels - 1
    assert output.loss.isfinite()


def test_patch_that_does_not_fit_names_the_next_one():
    with pytest.raises(BackboneError, match=r"next valid size is \(16, 24, 8\)"):
        make(unet(), patch=(16, 22, 8))


def test_same_seed_same_mixture():
    method = make(unet())
    first, again, other = (prepared(method, batch_of(), seed)["fused"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "config",
    [
        {"levels": 1}, {"levels": 2.5}, {"boxes": (10,)}, {"boxes": (9, 3)}, {"boxes": (0, 3)}, {"boxes": 5},
        {"min_box": 0}, {"max_box": 0}, {"max_box": 1.5}, {"ce_weight": -1.0}, {"augmentation": -0.5},
    ],
)  # fmt: skip
def test_nonsense_is_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        read_config(VolumeFusionConfig, config, "here")
    with pytest.raises(ValueError, match="not both 0"):
        VolumeFusionConfig(ce_weight=0, dice_weight=0)


def two_tissues(count: int = 6) -> torch.Tensor:
    """Blobs of -1 and 1, as images of two tissues."""
    noise = torch.randn(count, 1, *PATCH, generator=torch.Generator().manual_seed(2))
    noise = nn.functional.avg_pool3d(nn.functional.pad(noise, (2,) * 6, mode="replicate"), 5, 1)
    return (noise - noise.mean(dim=(1, 2, 3, 4), keepdim=True)).sign()


def fine_primus() -> nn.Module:
    return Primus(1, 216, (4, 4, 4), 3, 2, 3, PATCH, init_values=0.1, scale_attn_inner=True)


SIMPLER = {"levels": 3, "boxes": (10, 20)}  # a transformer takes longer


@pytest.mark.parametrize(("build", "steps", "lr", "config"), [(unet, 120, 1e-2, {}), (fine_primus, 240, 2e-3, SIMPLER)])
def test_learns_more_than_the_most_frequent_level(build, steps, lr, config):
    torch.set_num_threads(1)
    method = make(build(), augmentation=0.0, **config)
    images, levels = two_tissues(), method.config.levels
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr)
    rows = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        pairs = torch.stack([torch.randperm(len(images), generator=generator)[:2] for _ in range(4)])
        batch = {"image": images[pairs], "excluded": torch.zeros(4, 2, 1, *PATCH, dtype=torch.bool)}
        inputs = prepared(method, batch, seed=step)
        output = method(inputs)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        shares = torch.stack([(inputs["level"] == k).float().mean() for k in range(levels)])
        trivial = -(shares * shares.clamp(min=1e-6).log()).sum()  # cross entropy of the best answer without looking
        rows.append(
            [*(output.terms[k].item() for k in ("ce", "dice", "accuracy", "majority_accuracy")), trivial.item()]
        )
    ce, dice, right, majority, trivial = (sum(column[-20:]) / 20 for column in zip(*rows, strict=True))
    assert ce < 0.88 * trivial
    assert right > majority + 0.02
    assert dice > rows[0][1] + 0.1
