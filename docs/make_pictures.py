"""Make docs/pictures/<method>.png: what each pretext task asks for, after a few minutes of training on made-up images.

    python docs/make_pictures.py                       # all methods, about ten minutes on two CPU cores
    python docs/make_pictures.py --methods mae voco
    pip install -e examples/denoising; python docs/make_pictures.py --methods denoising     # for the tutorial
    make demo; python docs/make_pictures.py --demo demo                                     # what the demo showed

Pre-trains a tiny network with every method on the demo's phantoms, through nnUNetv2_pretrain, and copies the last preview
that the command leaves beside its checkpoints. report.png is the top of the demo's report.html in a browser, by hand.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.demo.data import UNLABELLED, write_demo_datasets
from nnunet_ssl.demo.job import CONFIGURATION, RAW, RESULTS
from nnunet_ssl.demo.run import environment
from nnunet_ssl.demo.steps import Step, run_steps
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.trainers.pretraining import trainer_class

PICTURES = Path(__file__).with_name("pictures")
PRIMUS = ("voco",)  # a U-Net takes longer to tell crops apart
COLOURS = 96  # greys, and the few colours of labels and masks
EPOCHS, ITERATIONS = 4, {"voco": 150, "volume_fusion": 100}  # per epoch; 40 for the others
# The recipes' blocks of 16 voxels are made for patches of 160; a phantom has 32 x 40 x 32.
SMALLER_BLOCKS = ("mae", "simmim", "consistent_views")


def pretrain(method: str) -> Step:
    """The command that trains a method long enough for its picture to show the task."""
    backbone = "primus_tiny" if method in PRIMUS else "resenc_tiny"
    line = (
        f"nnUNetv2_pretrain {dataset_id(UNLABELLED)} --method {method} --backbone {backbone} --epochs {EPOCHS} "
        f"--iterations-per-epoch {ITERATIONS.get(method, 40)} --val-iterations-per-epoch 1 --batch-size 4 -np 2 -device cpu"
    )
    if method in SMALLER_BLOCKS:
        line += f" --set {method}.mask_block=8"
    return Step(method, f"pre-train with {method}", argv=tuple(line.split()))


def copy_picture(folder: Path, method: str) -> Path:
    """The last preview of a run."""
    run = f"{trainer_class(method).__name__}__*__{CONFIGURATION}/fold_all/previews/epoch_{EPOCHS:04d}.png"
    (preview,) = (folder / RESULTS / UNLABELLED).glob(run)
    return copied(preview, method)


def copied(picture: Path, name: str, colours: int | None = COLOURS) -> Path:
    """A picture with as few colours as it needs (None: all it has), as docs/pictures/<name>.png."""
    target = PICTURES / f"{name}.png"
    image = Image.open(picture).convert("RGB")
    (image.quantize(colours) if colours else image).save(target, optimize=True)
    return target


def copy_from_demo(demo: Path) -> None:
    """The last reconstruction, and the first test case's segmentations, of a demo that has been run."""
    previews = demo.glob(f"{RESULTS}/{UNLABELLED}/SSLMAETrainer__*/fold_all/previews/*.png")
    print(copied(max(previews), "reconstruction"))
    print(copied(min(demo.glob("pictures/test_*.png")), "segmentations", colours=None))


def main() -> None:
    """Train and copy."""
    own = [m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=own, choices=method_names())
    parser.add_argument("--demo", type=Path, metavar="FOLDER", help="of a demo: its pictures, and no training")
    args = parser.parse_args()
    if args.demo:
        return copy_from_demo(args.demo)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        write_demo_datasets(folder / RAW, n_unlabelled=24, n_labelled=1, n_test=1)
        for method in args.methods:
            run_steps([pretrain(method)], folder, environment(folder))
            picture = copy_picture(folder, method)
            print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
