"""Loss and gradients of every method on one fixed batch, by one of `world` processes that share it.

Networks drop paths as the shipped presets and methods do, which depends on the order in which they are given the images.

python shared_batch_worker.py RANK WORLD FOLDER writes FOLDER/WORLD_RANK.pt: {(case, parts): (loss, gradients)}.
"""

import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.regularization import DropPath
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.backbones.drop_path import drop_by_image
from nnunet_ssl.methods import get_method
from nnunet_ssl.planners.presets import PRIMUS_M
from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.trainers.loop.micro_batches import split_inputs
from nnunet_ssl.views.rng import image_seeds

IMAGES = 4
KEYS = torch.from_numpy(image_seeds(5, range(IMAGES)))  # which image has which paths
DROP_PATH = PRIMUS_M.arch_kwargs["drop_path_rate"]  # that of the last block
CONFIGS = {
    "mae": {"mask_block": 4},
    "spark3d": {},
    "simmim": {"mask_block": 4, "loss_on": "everywhere"},
    "models_genesis": {"loss": "l1"},
    "volume_fusion": {},
    "voco": {"projector_dim": 16},
    "swin_unetr": {"embedding_dim": 8},
    "simclr": {"projector_dim": 16},
    "consistent_views": {"projector_dim": 16},
    "self_distillation": {"projector_dim": 16, "prototypes": 12},
}
CASES = [(name, kind) for name in CONFIGS for kind in ("unet", "primus") if kind in get_method(name).backbones]
PRIMUS_PATCHES = {"voco": (32, 32, 16)}  # crops of more than one token


def build(name, kind):
    torch.manual_seed(0)
    cls = get_method(name)
    wanted = dict(CONFIGS[name])
    if kind == "primus":
        wanted.pop("mask_block", None)
    config, patch = cls.Config(**wanted), (24, 32) if kind == "unet" else PRIMUS_PATCHES.get(name, (16, 24, 16))
    views = cls.views(config, patch)
    channels = cls.output_channels(config, 1)
    if kind == "unet":
        options = {"norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
        network = ResidualEncoderUNet(
            1, 3, [4, 8, 12], nn.Conv2d, 3, [1, 2, 2], 1, channels, [1, 1], True, nn.InstanceNorm2d, **options
        )
        for block in network.modules():  # as their `stochastic_depth_p` does, which this network passes on to none
            if isinstance(block, BasicBlockD):
                block.apply_stochastic_depth, block.drop_path = True, DropPath(DROP_PATH)
    else:
        options = {"drop_path_rate": DROP_PATH, "init_values": 0.1, "scale_attn_inner": True}
        network = Primus(1, 36, (8, 8, 8), channels, 2, 1, views.network_size, **options)
    return cls(wrap_network(network, views.network_size, cls.crop_setting), config), views


def batch_of(views):
    """Images of which one is half excluded, one nearly whole: every count differs from image to image."""
    shape = (IMAGES, *((views.regions,) if views.regions > 1 else ()), 1, *views.region_size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    excluded = torch.zeros(shape, dtype=torch.bool)
    excluded[0, ..., : shape[-1] // 3] = True
    excluded[3, ..., 1:] = True
    return {"image": image, "excluded": excluded}


def run(rank, world):
    """{(case, parts): (loss, gradients)} of this process; also called in a test's own, which must not notice."""
    before = stepping.autocast
    stepping.autocast = lambda device: nullcontext()  # equality is asked for, so no half precision
    try:
        return run_cases(rank, world)
    finally:
        stepping.autocast = before


def run_cases(rank, world):
    results = {}
    for name, kind in CASES:
        for parts in (1, 2) if world > 1 else (1, 2, 4):
            method, views = build(name, kind)
            paths = drop_by_image(method)
            method.eval()
            with torch.no_grad():
                inputs = method.prepare(batch_of(views), torch.Generator().manual_seed(2))
            method.train()
            own = split_inputs({**inputs, stepping.IMAGE_KEYS: KEYS}, IMAGES, world, ())[rank]
            network = DistributedDataParallel(method) if world > 1 else method
            calls = {"network": network, "encode": method.encode, "compare": method.compare, "drop_paths": paths}
            trainer = SimpleNamespace(method=method, **calls, device=torch.device("cpu"), grad_scaler=None)
            output = stepping.run_prepared(trainer, own, IMAGES // world, parts, seed=3)
            loss = output.loss.detach().clone()
            if world > 1:
                dist.all_reduce(loss)
                loss /= world
            gradients = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
            results[f"{name}-{kind}", parts] = (loss, gradients)
    return results


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(run(rank, world), f"{folder}/{world}_{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads do not always survive an orderly exit
