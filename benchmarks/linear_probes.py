"""What a linear model finds in frozen features of the networks that `learn.py` has pre-trained, beside untrained ones.

    python benchmarks/linear_probes.py Dataset004_Hippocampus OUT [OUT ...]

OUT: folders that `learn.py` has written. Targets are made from the labels of the data set: the volume of all structures together
[mm^3], and which half of the cases it belongs to. Features: the mean of the coarsest feature map over the image, as
`nnUNetv2_extract_features` writes them. Every pre-trained network has seen all images (never a label), as it has in practice.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.networks.stated import network_of
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.features.encoder import Encoder, load_encoder
from nnunet_ssl.targets.probe import probe
from nnunet_ssl.targets.table import BINARY, REGRESSION, Target


def targets_of(data: Path) -> tuple[list[Target], dict[str, str]]:
    """(targets, {case: image})."""
    ending = json.loads((data / "dataset.json").read_text())["file_ending"]
    volumes: dict[str, float] = {}
    for file in sorted((data / "labelsTr").glob(f"*{ending}")):
        label = sitk.ReadImage(str(file))
        voxels = int((sitk.GetArrayViewFromImage(label) > 0).sum())
        volumes[file.name.removesuffix(ending)] = voxels * float(np.prod(label.GetSpacing()))
    half = float(np.median(list(volumes.values())))
    large = {case: float(volume > half) for case, volume in volumes.items()}
    images = {case: str(data / "imagesTr" / f"{case}_0000{ending}") for case in volumes}
    return [Target("volume", REGRESSION, (), volumes), Target("large", BINARY, ("no", "yes"), large)], images


def untrained(file: Path, seed: int) -> Encoder:
    """The network of a checkpoint with weights as they are before any training."""
    encoder, checkpoint = load_encoder(file), read_checkpoint(file)
    entry: dict[str, Any] = network_of(checkpoint, canonical_weights(checkpoint)[0]).architecture(encoder.patch_size)
    torch.manual_seed(seed)
    fresh = get_network_from_plans(
        entry["network_class_name"], entry["arch_kwargs"], entry["_kw_requires_import"], encoder.backbone.in_channels, 2,
        allow_init=True, deep_supervision=None if encoder.backbone.kind == "primus" else False,
    )  # fmt: skip
    encoder.backbone.network.load_state_dict(fresh.state_dict())
    return encoder


def row(encoder: Encoder, name: str, targets: list[Target], images: dict[str, str]) -> str:
    """A line of the table."""
    features = {case: encoder.embed(image).numpy() for case, image in images.items()}
    cells = []
    for target in targets:
        main = probe(features, target, dict.fromkeys(images)).measures["R2" if target.kind == REGRESSION else "AUROC"]
        cells.append(f"{main['value']:.3f} ({main['low']:.3f} to {main['high']:.3f})")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="nnU-Net raw data set with imagesTr and labelsTr")
    parser.add_argument("outputs", type=Path, nargs="+", help="folders of learn.py")
    parser.add_argument("--untrained", type=int, default=2, help="networks with random weights per backbone")
    args = parser.parse_args()
    targets, images = targets_of(args.data)
    files = sorted(
        file for output in args.outputs for file in output.glob("runs/*/*/*/*/*/fold_all/checkpoint_final.pth")
    )
    print("| network | volume: R2 | large: AUROC |\n|---|---|---|", flush=True)
    seen = set()
    for file in files:
        backbone, method, number = file.parts[-7:-4]
        if backbone not in seen:
            seen.add(backbone)
            for seed in range(args.untrained):
                print(row(untrained(file, seed), f"{backbone}, untrained, {seed}", targets, images), flush=True)
        print(row(load_encoder(file), f"{backbone}, {method}, {number}", targets, images), flush=True)


if __name__ == "__main__":
    main()
