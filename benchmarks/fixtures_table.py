"""Every checkpoint of nnssl's trainers through our own reading and networks: what arrives, and is the output nnssl's?

    python benchmarks/fixtures_table.py FIXTURES

FIXTURES holds one folder per trainer: full_size.json (names and shapes of the full-size network), and for some
checkpoint_tiny.pth (a small one with weights) and io_tiny.pt (input and output as nnssl computed them). The first table
puts the full-size names and shapes into full-size networks; its tensors hold one repeated value, so it needs no memory to
speak of. The second one compares outputs; the exit code is 1 when one differs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.eva import Eva
from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation.adapt import adapt_checkpoint
from nnunet_ssl.checkpoints.adaptation.report import GROUPS, TransferReport
from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.read import read_checkpoint

TOLERANCE = 1e-4
FULL = ([32, 64, 128, 256, 320, 320], [1, 3, 4, 6, 6, 6])
TINY = ([8, 16, 16, 16, 32, 32], [1] * 6)


def unet(features: list[int], blocks: list[int], classes: int = 2) -> nn.Module:
    """ResEnc-L, or a small copy of it."""
    norm = (nn.InstanceNorm3d, {"eps": 1e-5, "turn": True})
    network = (nn.Conv3d, 3, [1, 2, 2, 2, 2, 2], blocks, classes, [1] * 5, True, *norm)
    return ResidualEncoderUNet(1, 6, features, *network, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True})


def primus(width: int, depth: int, heads: int, size: int, classes: int = 2) -> nn.Module:
    """Primus for patches of `size` voxels along each axis."""
    numbers = {"eva_depth": depth, "eva_numheads": heads, "input_shape": (size,) * 3}
    return Primus(1, width, (8, 8, 8), classes, **numbers, init_values=0.1, scale_attn_inner=True).eval()


def full_size(folder: Path) -> TransferReport | None:
    """The report of putting a full-size key list into the full-size network with 2 classes and a patch of 160."""
    files = sorted(folder.glob("full_size*.json"))
    if not files:
        return None
    record = json.loads(files[0].read_text())
    shapes = record.get("saved_network_weights_shapes") or record["shapes"]
    value = torch.full((1,), 0.5)
    checkpoint = {
        "network_weights": {name: value.expand(shape) for name, shape in shapes.items()},
        "trainer_name": record["trainer"],
        "nnssl_adaptation_plan": record["adaptation_plan"] or {},
    }
    with torch.device("meta"):
        target = primus(864, 16, 12, 160) if any(".attn." in name for name in shapes) else unet(*FULL)
    return adapt_checkpoint(checkpoint, target)[1]


# ---- outputs -----------------------------------------------------------------------------------------------------------


def upsample(mask: Tensor, factor: int) -> Tensor:
    """A mask per block -> a mask per voxel."""
    for axis in (2, 3, 4):
        mask = mask.repeat_interleave(factor, dim=axis)
    return mask


def filled(network: nn.Module, weights: dict[str, Tensor]) -> Any:
    """The network with exactly its own of the weights."""
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.eval()


def tokens_of(network: Any, image: Tensor) -> Tensor:
    return network.down_projection(image).flatten(2).transpose(1, 2)


def to_image(network: Any, tokens: Tensor) -> Tensor:
    return network.up_projection(tokens.transpose(1, 2).unflatten(2, (8, 8, 8)))


def volume_fusion(weights: dict[str, Tensor], image: Tensor, record: dict[str, Any]) -> list[Tensor]:
    return [filled(unet(*TINY, classes=5), weights)(image)]


def mae(weights: dict[str, Tensor], image: Tensor, record: dict[str, Any]) -> list[Tensor]:
    return [filled(unet(*TINY, classes=1), weights)(image * upsample(record["mask"].float(), 16))]


def simmim(weights: dict[str, Tensor], image: Tensor, record: dict[str, Any]) -> list[Tensor]:
    network = filled(primus(72, 2, 1, 64, 1), weights)
    visible = record["mask"].float().flatten(1).unsqueeze(-1)
    tokens = tokens_of(network, image) * visible + weights["mask_token"] * (1 - visible)
    return [to_image(network, network.eva(tokens)[0])]


def primus_mae(weights: dict[str, Tensor], image: Tensor, record: dict[str, Any]) -> list[Tensor]:
    network = filled(primus(72, 2, 1, 64, 1), weights)
    decoder = Eva(72, depth=1, num_heads=1, ref_feat_shape=(8, 8, 8), init_values=0.1, scale_attn_inner=True)
    filled(decoder, {name.removeprefix("decoder."): tensor for name, tensor in weights.items()})
    natural = torch.arange(512).view(8, 8, 8).transpose(0, 1).flatten()  # natural index of each swapped position
    keep = natural[record["keep_indices"]]
    index = keep.unsqueeze(-1).expand(-1, -1, 72)
    tokens = (tokens_of(network, image) + network.eva.pos_embed).gather(1, index)
    rope = network.eva.rope.get_embed()[keep].unsqueeze(1)
    for block in network.eva.blocks:
        tokens = block(tokens, rope=rope)
    full = weights["mask_token"].expand(len(image), 512, -1).scatter(1, index, network.eva.norm(tokens))
    return [to_image(network, decoder(full)[0])]


def voco(weights: dict[str, Tensor], image: Tensor, record: dict[str, Any]) -> list[Tensor]:
    encoder = unet(*TINY).encoder
    filled(encoder, {name.removeprefix("encoder."): tensor for name, tensor in weights.items()})
    features = torch.cat([stage.mean(dim=(2, 3, 4)) for stage in encoder(image)], dim=1)
    for layer in ("layer1.0", "layer2.0"):
        features = F.linear(features, weights[f"projector.{layer}.weight"], weights[f"projector.{layer}.bias"])
        features = F.relu(F.layer_norm(features, features.shape[1:]))
    return [F.linear(features, weights["projector.layer3.0.weight"], weights["projector.layer3.0.bias"])]


def swin_unetr(weights: dict[str, Tensor], image: Tensor, record: dict[str, Any]) -> list[Tensor]:
    network = primus(72, 2, 1, 64)
    kept = {n: weights.get(n, t) for n, t in network.state_dict().items()}  # the file has no up_projection
    network.load_state_dict(kept)
    tokens = network.eva(tokens_of(network, image))[0]
    heads = [
        F.linear(tokens[:, number], weights[f"{name}_proj_head.weight"], weights[f"{name}_proj_head.bias"])
        for number, name in enumerate(("rotation", "contrast"))
    ]
    out = tokens.transpose(1, 2).unflatten(2, (8, 8, 8))
    for number in (0, 4, 8):
        out = F.conv3d(
            out, weights[f"recon_proj_head.{number}.weight"], weights[f"recon_proj_head.{number}.bias"], padding="same"
        )
        out = F.interpolate(F.leaky_relu(F.instance_norm(out), 0.01), scale_factor=2, mode="trilinear")
    out = F.conv3d(out, weights["recon_proj_head.12.weight"], weights["recon_proj_head.12.bias"], padding="same")
    return [*heads, out]


def visible_norm(x: Tensor, visible: Tensor) -> Tensor:
    """Instance norm without weights over the visible positions, zero elsewhere."""
    count = visible.sum(dim=(2, 3, 4), keepdim=True)
    centred = (x - (x * visible).sum(dim=(2, 3, 4), keepdim=True) / count) * visible
    return centred / (centred.square().sum(dim=(2, 3, 4), keepdim=True) / count + 1e-5).sqrt()


def spark(weights: dict[str, Tensor], image: Tensor, record: dict[str, Any]) -> list[Tensor]:
    network, grid = filled(unet(*TINY, classes=1), weights), record["mask"].float()

    def visible_at(x: Tensor) -> Tensor:  # nnssl's bottleneck, finer than no block, is dense
        factor = x.shape[2] // grid.shape[2]
        return upsample(grid, factor) if factor else torch.ones_like(x[:, :1])

    def after(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        visible = visible_at(out)
        if not isinstance(module, nn.InstanceNorm3d):
            return out * visible
        scale, shift = (p[:, None, None, None] for p in (module.weight, module.bias))
        return (visible_norm(inputs[0], visible) * scale + shift) * visible

    for module in network.encoder.modules():
        if isinstance(module, (nn.Conv3d, nn.InstanceNorm3d, nn.AvgPool3d)):
            module.register_forward_hook(after)
    skips = network.encoder(image)
    for number, skip in enumerate(skips):
        visible = visible_at(skip)
        dense = visible_norm(skip, visible) + record["spark"][f"mask_tokens.{number}"] * (1 - visible)
        if number:
            names = (f"densify_projs.{number}.{kind}" for kind in ("weight", "bias"))
            dense = F.conv3d(dense, *(record["spark"][name] for name in names), padding=1)
        skips[number] = dense
    return [network.decoder(skips)]


OUTPUTS: dict[str, Callable[[dict[str, Tensor], Tensor, dict[str, Any]], list[Tensor]]] = {
    "BaseEvaMAETrainer": primus_mae,
    "BaseMAETrainer": mae,
    "SimMIMEvaTrainer": simmim,
    "SparkMAETrainer": spark,
    "SwinUNETREvaTrainer": swin_unetr,
    "VoCoTrainer": voco,
    "VolumeFusionTrainer": volume_fusion,
}


@torch.no_grad()
def difference(folder: Path) -> float | None:
    """Largest absolute difference between nnssl's recorded output and ours; None where nothing can be compared."""
    if not (folder / "io_tiny.pt").exists() or folder.name not in OUTPUTS:
        return None
    record = torch.load(folder / "io_tiny.pt", weights_only=True)
    image = torch.randn(record["input_shape"], generator=torch.Generator().manual_seed(1234))
    checkpoint = read_checkpoint(folder / "checkpoint_tiny.pth")
    weights, record["spark"] = canonical_weights(checkpoint)[0], checkpoint.get("spark_weights")
    wanted = record["out"] if isinstance(record["out"], (list, tuple)) else [record["out"]]
    ours = OUTPUTS[folder.name](weights, image, record)
    ours = [
        o[..., ::4, ::4, ::4] if o.ndim == 5 and o.shape != w.shape else o for o, w in zip(ours, wanted, strict=True)
    ]
    return max(float((o - w).abs().max()) for o, w in zip(ours, wanted, strict=True))


def tiny(folder: Path) -> TransferReport:
    """The report of putting a small checkpoint with weights into the small network with 2 classes."""
    target = primus(72, 2, 1, 64) if "Eva" in folder.name else unet(*TINY)
    state, report = adapt_checkpoint(read_checkpoint(folder / "checkpoint_tiny.pth"), target)
    target.load_state_dict(state)
    return report


def counts(report: TransferReport) -> str:
    """Parameters loaded, adapted, fresh, left out, and the share of the encoder that came from the checkpoint."""
    groups = [report.groups[name] for name in GROUPS]
    sums = [sum(getattr(group, kind) for group in groups) for kind in ("loaded", "adapted", "fresh", "left_out")]
    return " | ".join(f"{number:,}" for number in sums) + f" | {report.encoder_fraction:.1%}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fixtures", type=Path, help="folder with one folder per trainer")
    fixtures = parser.parse_args(argv).fixtures
    folders = sorted(path for path in fixtures.iterdir() if path.is_dir())
    if not folders:
        parser.error(f"{fixtures} holds no folders of trainers.")
    header = "| trainer | network | transfer | loaded | adapted | fresh | left out | encoder |"
    print(f"Full size\n\n{header}\n|{'---|' * 8}")
    for folder in folders:
        report = full_size(folder)
        if report is not None:
            print(f"| {folder.name} | {report.source.family} | {report.transfer} | {counts(report)} |")
    print(f"\nWith weights, small\n\n{header} largest difference of outputs |\n|{'---|' * 9}")
    wrong = 0
    for folder in folders:
        if (folder / "checkpoint_tiny.pth").exists():
            report, found = tiny(folder), difference(folder)
            wrong += found is not None and found > TOLERANCE
            shown = "not compared" if found is None else f"{found:.1e}"
            print(f"| {folder.name} | {report.source.family} | {report.transfer} | {counts(report)} | {shown} |")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
