"""Random numbers that belong to images: the same in whatever process an image is, and as random as torch's."""

import runpy
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from timm.layers import DropPath
from torch import nn

from nnunet_ssl.backbones.drop_path import drop_by_image, use_keys
from nnunet_ssl.methods import swin_unetr
from nnunet_ssl.views import rng

WORKER = runpy.run_path(str(Path(__file__).with_name("shared_batch_worker.py")))
SEED = 2**32 - 1  # the largest that derive_seed gives


def generator(images=range(4), seed=SEED):
    return rng.ImageGenerator("cpu", seed, images)


def rows(tensor, images, total=4):
    """The rows of some images of a tensor [V * total, ...], views first."""
    return tensor.unflatten(0, (-1, total))[:, list(images)].flatten(0, 1)


LARGE = (16, 24, 32)  # more numbers than are hashed
KINDS = {
    "rand": lambda n, g: rng.rand((2 * n, 3), g),
    "rand, many": lambda n, g: rng.rand((2 * n, *LARGE), g),
    "randn": lambda n, g: rng.randn((n, 3, 5), g),
    "randn, many": lambda n, g: rng.randn((n, *LARGE), g),
    "randint": lambda n, g: rng.randint(2, 9, (3 * n,), g),
    "randint, many": lambda n, g: rng.randint(2, 9, (n, *LARGE), g),
    "exponential": lambda n, g: rng.exponential((n, 4), g),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [range(0, 2), range(2, 4), range(3, 4)])
def test_share_of_a_process_is_its_rows_of_the_whole(kind, images):
    whole, share = generator(), generator(images)
    for _ in range(2):  # every draw is another one
        assert torch.equal(rows(KINDS[kind](4, whole), images), KINDS[kind](len(images), share))


def test_rows_of_an_image_may_lie_together():
    whole, share = rng.by_image(generator(), 3), rng.by_image(generator(range(1, 3)), 3)
    assert torch.equal(rng.rand((12, 5), whole)[3:9], rng.rand((6, 5), share))
    again = generator()
    assert not torch.equal(rng.rand((12,), rng.by_image(again, 3)), rng.rand((12,), rng.by_image(again, 3)))


def test_draws_of_the_whole_batch_are_shared_and_those_of_others_are_not():
    first, second = generator(range(0, 2)), generator(range(2, 4))
    assert torch.rand((), generator=rng.whole(first)) == torch.rand((), generator=rng.whole(second))
    assert torch.rand((), generator=first) != torch.rand((), generator=second)  # a method that knows only torch


def test_another_step_has_other_numbers():
    assert not torch.equal(rng.rand((4, 3), generator(seed=1)), rng.rand((4, 3), generator(seed=2)))


@pytest.mark.parametrize("count", [rng.MANY // 2, rng.MANY])  # hashed, and from torch's generator
def test_numbers_are_random(count):
    images = 64
    g = generator(range(images))
    x, y = (rng.rand((images, count), g) for _ in range(2))
    deviation = (1 / 12) ** 0.5 / (images * count) ** 0.5
    assert abs(x.mean() - 0.5) < 4 * deviation
    assert 0 <= x.min() < 1e-4 < 1 - 1e-4 < x.max() < 1
    counts = torch.histc(x, 64, 0, 1)
    expected = images * count / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 25 < chi_square < 115  # 63 degrees of freedom: 63 +- 11
    for a, b in ((x, y), (x[1:], x[:-1]), (x[:, 1:], x[:, :-1])):  # draws, images, neighbours
        correlation = 12 * ((a - 0.5) * (b - 0.5)).mean()
        assert abs(correlation) < 4.5 / a.numel() ** 0.5
    z = rng.randn((images, count), g).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4.5 * (variance / z.numel()) ** 0.5
    n = rng.randint(-3, 4, (images, count), g)
    shares = torch.bincount((n + 3).flatten()) / n.numel()
    assert shares.sub(1 / 7).abs().max() < 5 * (1 / 7 / n.numel()) ** 0.5
    e = rng.exponential((images, count), g)
    assert e.min() >= 0
    assert abs(e.mean() - 1) < 4.5 / e.numel() ** 0.5


def test_plain_generators_draw_as_torch_does():
    ours, torchs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    assert torch.equal(rng.rand((3, 2), ours), torch.rand(3, 2, generator=torchs))
    assert torch.equal(rng.randint(1, 5, (9,), ours), torch.randint(1, 5, (9,), generator=torchs))
    assert torch.equal(rng.exponential((9,), ours), torch.empty(9).exponential_(generator=torchs))


@pytest.mark.parametrize("plain", [False, True])
def test_the_host_draws_what_the_device_would(plain):
    first, second = (torch.Generator().manual_seed(2) if plain else generator() for _ in range(2))
    host = rng.Host(second)
    for drawn, own in [
        (rng.rand((4, 3), first), host.rand(4, 3)),
        (rng.randint(2, 9, (8,), first), host.randint(2, 9, 8)),
        (rng.exponential((4, 5), first), host.exponential(4, 5)),
    ]:
        assert own.dtype == drawn.numpy().dtype
        assert torch.allclose(drawn, torch.from_numpy(own))


@pytest.mark.parametrize("count", [3, rng.MANY])
@pytest.mark.parametrize("plain", [False, True])
def test_rows_that_are_wanted_are_those_of_the_whole(count, plain):
    first, second = (torch.Generator().manual_seed(2) if plain else generator() for _ in range(2))
    for draw in (rng.rand, lambda shape, g, rows=None: rng.randint(0, 99, shape, g, rows)):
        for wanted in ([1, 3], []):
            assert torch.equal(draw((4, count), first)[wanted], draw((4, count), second, wanted))


def test_numbers_that_belong_to_no_image_are_refused():
    with pytest.raises(ValueError, match=r"\(6, 2\) cannot belong to 4 images.*whole"):
        rng.rand((6, 2), generator())


@pytest.mark.parametrize(("name", "kind"), WORKER["CASES"])
def test_every_method_prepares_its_share_as_in_the_whole(name, kind, monkeypatch):
    """The heart of it: however many processes share a batch, each image is cropped, masked and augmented the same."""
    monkeypatch.setattr(swin_unetr, "processes", lambda together: 1)
    monkeypatch.setattr(swin_unetr, "check_images", lambda *_args, **_options: None)
    method, views = WORKER["build"](name, kind)
    batch = WORKER["batch_of"](views)
    wholes = [method.prepare(batch, generator(seed=s)) for s in range(3)]
    assert any(not torch.equal(wholes[0][k], wholes[1][k]) for k in wholes[0])
    monkeypatch.setattr(swin_unetr, "processes", lambda together: 2)
    for share in (range(0, 2), range(2, 4)):
        own = {k: v[share.start : share.stop] for k, v in batch.items()}
        for seed, whole in enumerate(wholes):
            inputs = method.prepare(own, generator(share, seed))
            assert inputs.keys() == whole.keys()
            for key, value in inputs.items():
                expected = whole[key] if whole[key].ndim == 0 else rows(whole[key], share)
                assert (
                    torch.allclose(value, expected, atol=1e-5)
                    if value.is_floating_point()
                    else torch.equal(value, expected)
                ), key


@pytest.mark.parametrize("style", ["grid", "slices"])
def test_masks_with_a_common_pattern_have_it_in_every_process(style, monkeypatch):
    from nnunet_ssl.views.masks import draw_ratio, random_blocks

    for seed in range(5):
        ratios = [draw_ratio((0.3, 0.8), generator(i, seed)) for i in (range(4), range(2, 4))]
        assert ratios[0] == ratios[1]
        g, h = generator(range(4), seed), generator(range(2, 4), seed)
        assert (random_blocks(4, (4, 6, 5), 0.5, g, style)[2:] == random_blocks(2, (4, 6, 5), 0.5, h, style)).all()


class TestStochasticDepth:
    def paths(self):
        network = nn.Sequential(nn.Sequential(DropPath(0.4)), DropPath(0.25))
        before = set(network.state_dict())
        paths = drop_by_image(network)
        assert [p.drop_prob for p in paths] == [0.4, 0.25]
        assert set(network.state_dict()) == before
        return network, paths

    def test_paths_belong_to_the_images(self):
        network, paths = self.paths()
        x = torch.ones(8, 3, 2)  # two views of four images
        whole, share = generator(), generator(range(1, 3))
        use_keys(paths, whole.keys)
        expected = network(x)
        use_keys(paths, share.keys)
        assert torch.equal(network(x[:4]), rows(expected, range(1, 3)))

    def test_rows_that_are_no_views_of_the_images_are_refused(self):
        network, paths = self.paths()
        use_keys(paths, generator().keys)
        with pytest.raises(ValueError, match="given 6 images or views made of 4 images"):
            network(torch.ones(6, 3, 2))

    def test_paths_of_residual_blocks_belong_to_the_images_as_well(self):
        block = BasicBlockD(nn.Conv2d, 4, 4, 3, 1, stochastic_depth_p=0.5)
        (path,) = drop_by_image(block)
        assert block.drop_path is path
        assert path.drop_prob == 0.5

    def test_share_and_scale_are_timms(self):
        network, paths = self.paths()
        use_keys(paths, generator(range(20000)).keys)
        kept = network(torch.ones(20000, 1, 1)).flatten()
        assert torch.unique(kept).tolist() == pytest.approx([0, 1 / 0.6 / 0.75])
        assert (kept > 0).float().mean() == pytest.approx(0.6 * 0.75, abs=0.02)  # independently of each other

    def test_nothing_is_dropped_in_evaluation_and_torch_draws_without_keys(self):
        network, paths = self.paths()
        x = torch.ones(200, 1)
        torch.manual_seed(0)
        assert (network(x) == 0).any()
        use_keys(paths, generator(range(200)).keys)
        assert torch.equal(network.eval()(x), x)
