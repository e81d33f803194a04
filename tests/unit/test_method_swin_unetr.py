"""SwinUNETR's tasks: what is turned and cut, what the heads see, that they learn."""

import itertools

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.methods.swin_unetr import ReconstructionHead, SwinUNETR, SwinUNETRConfig, average_halves
from nnunet_ssl.settings.blocks import read_config
from nnunet_ssl.views.orientation import turn

METHOD = SwinUNETR
PATCH = (16, 24, 16)


def test_inputs_against_loops(make, batch_of, prepared):
    method = make("unet")
    batch = batch_of()
    batch["excluded"][0, :, :4] = True
    inputs = prepared(method, batch)
    for i in range(6):
        for name, source in (("turned", batch["image"]), ("excluded", batch["excluded"])):
            expected = turn(source[i % 3 : i % 3 + 1], inputs["turns"][i : i + 1].numpy())[0]
            assert torch.equal(inputs[name][i], expected)
    outside = ~inputs["hidden"]
    assert torch.equal(inputs["cut"][outside], inputs["turned"][outside])
    assert (inputs["cut"] != inputs["turned"])[inputs["hidden"]].float().mean() > 0.95
    assert inputs["hidden"].any()
    assert set(inputs["turns"].tolist()) <= {0, 1, 2, 3}


def test_a_batch_of_one_is_never_pasted_into_itself(make, batch_of, prepared):
    method = make("unet", contrast_weight=0.0, max_cutout=0.3)
    inputs = prepared(method, batch_of(number=1))
    noise = inputs["cut"][inputs["hidden"]]
    assert (noise >= 0).all()
    assert (noise <= 1).all()


def test_square_planes_turn_by_quarters_and_others_by_halves(make, batch_of, prepared):
    for patch in ((16, 16, 16), (8, 16, 24)):
        method = make("unet", patch)
        inputs = prepared(method, batch_of(patch, number=8))
        for x, original, k in zip(inputs["turned"], batch_of(patch, number=8)["image"].repeat(2, 1, 1, 1, 1),
                                  inputs["turns"].tolist(), strict=True):  # fmt: skip
            if patch[1] == patch[2]:
                assert torch.equal(x, torch.rot90(original, k, [-2, -1]))
            else:
                assert torch.equal(x, original.flip([a for a, ks in ((-2, (1, 2)), (-1, (2, 3))) if k in ks]))


@pytest.mark.parametrize(("kind", "patch"), [("unet", (16, 24, 8)), ("unet", (24, 16)), ("primus", (16, 24, 8))])
def test_reconstruction_head_gives_back_the_size(kind, patch, make):
    method = make(kind, patch, channels=2)
    bottleneck = method.backbone.features(torch.randn(2, 2, *patch))[-1]
    assert ReconstructionHead(method.backbone)(bottleneck).shape == (2, 2, *patch)


def test_reconstruction_head_of_the_recipe():
    network = ResidualEncoderUNet(
        1, 6, [4, 8, 16, 32, 40, 40], nn.Conv3d, 3, [1, 2, 2, 2, 2, 2], 1, 1, [1] * 5, True, nn.InstanceNorm3d,
        nonlin=nn.LeakyReLU,
    )  # fmt: skip
    head = ReconstructionHead(wrap_network(network, (64, 64, 64)))
    assert [b[0].out_channels for b in head.blocks] == [40, 32, 16, 8, 4]


def test_heads_read_the_whole_bottleneck(make, batch_of, prepared):
    """Contrast its average, rotation the averages of its halves."""
    method = make("unet").eval()
    seen = {}
    for name in ("rotation", "contrast"):
        head = getattr(method, f"{name}_head")
        head.register_forward_pre_hook(lambda _m, args, name=name: seen.update({name: args[0]}))
    inputs = prepared(method, batch_of())
    method(inputs)
    bottleneck = method.backbone.features(inputs["cut"])[-1]
    assert torch.allclose(seen["contrast"], bottleneck.mean(dim=(2, 3, 4)), atol=1e-5)
    assert torch.equal(seen["rotation"], average_halves(bottleneck))


@pytest.mark.parametrize("size", [(4, 6, 2), (3, 1, 5), (5, 4)])
def test_halves_against_slices(size):
    x = torch.randn(2, 3, *size)
    averages = []
    for sides in itertools.product((0, 1), repeat=len(size)):
        halves = [
            slice(0, (n + 1) // 2) if side == 0 else slice(n // 2, n) for n, side in zip(size, sides, strict=True)
        ]
        averages.append(x[(slice(None), slice(None), *halves)].flatten(2).mean(dim=2))
    torch.testing.assert_close(average_halves(x), torch.stack(averages, dim=2).flatten(1))


def test_excluded_voxels_do_not_count(make, batch_of, prepared):
    method = make("unet", contrast_weight=0.0, rotation_weight=0.0).eval()
    batch = batch_of()
    batch["excluded"][:, :, :5] = True
    inputs = prepared(method, batch)
    other = {**inputs, "turned": torch.where(inputs["excluded"], 100.0, inputs["turned"])}
    first, second = method(inputs), method(other)
    assert torch.equal(first.loss, second.loss)
    slow = (first.preview["reconstruction"] - inputs["turned"][:3]).abs()[~inputs["excluded"][:3]]
    later = method.reconstruction_head(method.backbone.features(inputs["cut"])[-1])[3:]
    slow = torch.cat([slow, (later - inputs["turned"][3:]).abs()[~inputs["excluded"][3:]]])
    assert torch.allclose(first.loss, slow.mean(), atol=1e-5)


@pytest.mark.parametrize("name", ["rotation", "contrast", "inpainting"])
def test_a_task_without_weight_has_no_head(name, make, batch_of, prepared):
    method = make("unet", **{f"{name}_weight": 0.0})
    head = {"rotation": "rotation_head", "contrast": "contrast_head", "inpainting": "reconstruction_head"}[name]
    assert not any(k.startswith(head) for k in method.heads())
    output = method(prepared(method, batch_of()))
    output.loss.backward()
    assert name not in output.terms
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_a_single_image_has_no_negatives(make, batch_of, prepared):
    with pytest.raises(ValueError, match="batch of one"):
        prepared(make("unet"), batch_of(number=1))
    method = make("unet", contrast_weight=0.0)
    assert method(prepared(method, batch_of(number=1))).loss > 0
    method = make("unet").eval()
    assert method(prepared(method, batch_of(number=1))).terms["contrast"] == 0
    with pytest.warns(UserWarning, match=r"3 is too small.*recipe has 8"):
        prepared(make("unet"), batch_of())


def test_unfit_sizes_and_settings_are_refused(make):
    with pytest.raises(BackboneError, match="next valid size is"):
        make("unet", (16, 22, 16))
    for wrong in ({"max_cutout": 1}, {"min_box": 0.5}, {"temperature": 0}, {"embedding_dim": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read_config(SwinUNETRConfig, wrong, "here")
    with pytest.raises(ValueError, match="not all 0"):
        SwinUNETRConfig(rotation_weight=0, contrast_weight=0, inpainting_weight=0)


@pytest.mark.parametrize(
    ("kind", "patch", "steps", "lr", "embed"), [("unet", (24, 24), 240, 3e-3, 72), ("primus", (16,) * 3, 40, 2e-3, 72)]
)
def test_learns_all_three_tasks(kind, patch, steps, lr, embed, make, smooth, train, mean_term):
    # Every image is the same anatomy, which gives it an upright position, with a variation of its own.
    images = smooth(1, patch, seed=5) + smooth(6, patch)
    method = make(kind, patch, embed=embed, max_cutout=0.15)
    outputs = train(method, images, steps, lr)
    assert mean_term(outputs, "rotation") < 0.75 * np.log(4)
    assert mean_term(outputs, "rotation_accuracy") > 0.5
    assert mean_term(outputs, "contrast") < np.log(11) - 0.3
    assert mean_term(outputs, "inpainting") < 0.75 * images.sub(images.mean()).abs().mean()
    assert mean_term(outputs, "explained_variance") > 0.3
    assert mean_term(outputs, "spread") > 0.4
