"""Write docs/mistakes.md: what the commands print on wrong inputs, so that the wording is read when it changes.

    python docs/make_mistakes.py            writes the page
    python docs/make_mistakes.py --check    exit code 1, and the differences, where the page is another one

All commands run in this process, on a data set of two small images without labels (906), one with labels (907), a checkpoint of
a tiny network and a text file. None of them may prepare anything.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import shlex
import sys
import warnings
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

PAGE = Path(__file__).parent / "mistakes.md"
HEAD = """# Wrong inputs, and what is printed

Written by `python docs/make_mistakes.py` from the commands themselves; a test compares. Data set 906 has images without labels,
907 has labels; `weights.pth` is a checkpoint, `notes.txt` is none, `targets.csv` knows one of the cases. Every answer comes
before an image is prepared, and ends the command with exit code 1, or 2 where the flags could not be understood.

| typed | printed |
|---|---|
"""
PRETRAIN = """
999
Dataset906_Tyni
906 906
906 3d_lowres
906 3d_fullres 0 1
906 3d_fullres 0 -f 1
906 3d_fullres -c 2d
-f all
906 --method mea
906 --method MAE-ST
906 --backbone resencl
906 --backbone resnet50
906 -tr SSLMEATrainer
906 -tr nnUNetTrainer
906 -tr SSLFinetuneTrainer
906 --method mae -tr SSLSimCLRTrainer
906 --batch_size 2
906 --learning-rate 0.1
906 --npz
906 --gpus 4
906 --resume
906 --epochs ten
906 --epochs 0
906 --epochs
906 --lr fast
906 --seed -1
906 --save-every 0
906 --early-stop soon
906 --set mask_ratio=0.6
906 --set temperature=0.1
906 --set mae.mask_rato=0.5
906 --set mea.mask_ratio=0.5
906 --set warmup_epoch=5
906 --set mask_size
906 --set optimizer=adam
906 --set seed=1 --set seed.x=2
906 --set mae=3 --set mae.loss=l1
906 --set mae.normalise_target=perhaps
906 --set batch_size=true --set mae.mask_ratio=2
906 --set datasets=745
906 --mask-ratio 1.5
906 --epochs 5 --set warmup_epochs=7
906 --batch-size 7 --num-gpus 2
906 --patch-size 17
906 --patch-size 64 64
906 --method simclr --set simclr.crop_size=400
906 --method simclr --set simclr.crop_size=[64,64]
906 --method simclr --set simclr.temperature=nan
906 --method spark3d --set spark3d.mask_block=17
906 --method spark3d --backbone primus_tiny
906 -p noPlans
906 -p nnUNetPlans --backbone resenc_tiny
906 -p nnUNetPlans --normalization per_image
906 -f x
906 --run-name 'my run'
906 --channels both
906 --sampling patients
906 --device cpu
906 -device gpu
906 --logger tensorbord
906 --probe 999
906 --probe 906
906 --probe-every 0
906 -pretrained_weights ResEncL-OpenMind-MEA
906 -pretrained_weights nowhere.pth
906 -pretrained_weights notes.txt
"""
OTHERS = """
nnUNetv2_finetune 907
nnUNetv2_finetune -pretrained_weights weights.pth
nnUNetv2_finetune 907 908 -pretrained_weights weights.pth
nnUNetv2_finetune 999 -pretrained_weights weights.pth -device cpu
nnUNetv2_finetune 906 -pretrained_weights weights.pth -device cpu
nnUNetv2_finetune 907 -pretrained_weights nowhere.pth -device cpu
nnUNetv2_finetune 907 -pretrained_weights notes.txt -device cpu
nnUNetv2_finetune 907 -pretrained_weights weights.pth -tr SSLFintuneTrainer
nnUNetv2_finetune 907 -pretrained_weights weights.pth -tr SSLMAETrainer
nnUNetv2_finetune 907 -pretrained_weights weights.pth -f 0 five
nnUNetv2_finetune 907 -pretrained_weights weights.pth --adapt like
nnUNetv2_finetune 907 -pretrained_weights weights.pth -p somePlans --adapt fixed
nnUNetv2_finetune 907 -pretrained_weights weights.pth -p somePlans -device cpu
nnUNetv2_finetune 907 -pretrained_weights weights.pth --epochs 0 --batch-size 0 -device cpu
nnUNetv2_plan_finetune 907 -pretrained_weights weights.pth --adapt fixed
nnUNetv2_plan_finetune 907 -pretrained_weights weights.pth --adapt like_dataset --spacing 1 1 1
nnUNetv2_plan_finetune 907 -pretrained_weights weights.pth -plans_name nnUNetPlans
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth
nnUNetv2_extract_features -pretrained_weights weights.pth -o f.csv -device cpu
nnUNetv2_extract_features -d 907 -i scans -pretrained_weights weights.pth -o f.csv -device cpu
nnUNetv2_extract_features -d 999 -pretrained_weights weights.pth -o f.csv -device cpu
nnUNetv2_extract_features -i nowhere -pretrained_weights weights.pth -o f.csv -device cpu
nnUNetv2_extract_features -i nowhere -pretrained_weights weights.pth -o f.csv --level region -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.csv --level voxel -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.csv --level patch -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.xlsx -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights notes.txt -o f.csv -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.csv --layer 9 -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.csv --layer last -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.csv --targets targets.csv -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.csv --target age -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.csv --colour subject -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.csv --html f.html --colour subjct -device cpu
nnUNetv2_extract_features -d 907 -pretrained_weights weights.pth -o f.csv --subject-pattern 'sub-(.*)' -device cpu
nnUNetv2_pretrain_compare 907
nnUNetv2_pretrain_compare -o nowhere
nnUNetv2_pretrain_compare -o nowhere --report
nnUNetv2_pretrain_compare 999 -pretrained_weights weights.pth
nnUNetv2_pretrain_compare 906 -pretrained_weights weights.pth -device cpu
nnUNetv2_pretrain_compare 907 -pretrained_weights nowhere.pth
nnUNetv2_pretrain_compare 907 -pretrained_weights notes.txt
nnUNetv2_pretrain_compare 907 -pretrained_weights a=weights.pth A=weights.pth
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth -f all
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth -f 0 five
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth --labelled few
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth --labelled 10 10
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth --seeds 0
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth --metrics dice
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth --epochs 0 --tolerance -1
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth -tr SSLFintuneTrainer
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth -p somePlans
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth --dynamic somePlans
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth --list --report
nnUNetv2_pretrain_compare 907 -pretrained_weights weights.pth --protocol openmnd
nnUNetv2_pretrain_corpus 999
nnUNetv2_pretrain_corpus 906 907
nnUNetv2_pretrain_corpus 906 --sample -1
nnUNetv2_pretrain_corpus 906 --check --forget all
nnUNetv2_pretrain_corpus 906 --filter 'modalty == "T1w"'
nnUNetv2_pretrain_import -i nowhere -d 745 -n Brains
nnUNetv2_pretrain_import -i nowhere -d 745
nnUNetv2_pretrain_import -i nowhere -d 906 -n Brains
nnUNetv2_pretrain_import -i nowhere -d 0 -n Brains
nnUNetv2_pretrain_import -i nowhere -d 745 -n 'My Brains'
nnUNetv2_pretrain_import -i nowhere -d 745 -n Brains --subject-pattern '('
nnUNetv2_pretrain_import -i nowhere -d 745 -n Brains --kind bidz
nnUNetv2_pretrain_info nowhere.pth
nnUNetv2_pretrain_info notes.txt
nnUNetv2_pretrain_export weights.pth -o out --format onnx
nnUNetv2_pretrain_export weights.pth -o out --public
nnUNetv2_pretrain_export weights.pth -o out -f 0
nnUNetv2_pretrain_models ResEncL-OpenMind-MEA
nnUNetv2_pretrain_models --method xyz
nnUNetv2_pretrain_models ResEncL-OpenMind-MAE --method mae
nnUNetv2_pretrain_benchmark --iterations many
nnUNetv2_pretrain_benchmark -p somePlans
"""
MODULES = {"nnUNetv2_pretrain_import": "import_corpus"}


def typed() -> list[list[str]]:
    """All command lines, split as a shell does."""
    lines = [f"nnUNetv2_pretrain {line}" for line in PRETRAIN.strip().splitlines()] + OTHERS.strip().splitlines()
    return [shlex.split(line) for line in lines]


def answer(words: list[str]) -> tuple[object, str]:
    """(exit code, what stderr says) of one command."""
    program, *arguments = words
    name = MODULES.get(program) or program.removeprefix("nnUNetv2_").removeprefix("pretrain_")
    main = import_module(f"nnunet_ssl.cli.{name}").main
    # A mistake that is none any more must not train for hours on a GPU.
    more = ["-device", "cpu", "-np", "1"] if program == "nnUNetv2_pretrain" and "-device" not in arguments else []
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            main([*arguments, *more] if arguments[-1].isalnum() or "=" in arguments[-1] else [*more, *arguments])
            code: object = 0
        except SystemExit as left:
            code = left.code
    _, name_again, message = said.getvalue().rpartition(f"{program}: ")  # behind what a progress bar has drawn
    return code, f"{name_again}{message}".strip()


def set_up(folder: Path) -> None:
    """The folders, data sets and files that the commands name, in `folder`, which becomes the working directory."""
    import numpy as np
    import SimpleITK as sitk
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(folder / name)
        (folder / name).mkdir()
    os.chdir(folder)
    for number in (906, 907):
        dataset = folder / "nnUNet_raw" / f"Dataset{number}_Tiny"
        for part in ("imagesTr", "labelsTr") if number == 907 else ("imagesTr",):
            (dataset / part).mkdir(parents=True)
        for case in range(2):
            image = sitk.GetImageFromArray(np.random.default_rng(case).normal(size=(20, 24, 28)).astype(np.float32))
            sitk.WriteImage(image, str(dataset / "imagesTr" / f"tiny_{case}_0000.nii.gz"))
            if number == 907:
                sitk.WriteImage(sitk.Cast(image > 0, sitk.sitkUInt8), str(dataset / "labelsTr" / f"tiny_{case}.nii.gz"))
        content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "ball": 1}, "numTraining": 2}
        (dataset / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    network = PlainConvUNet(1, 2, (4, 8), torch.nn.Conv3d, 3, (1, 2), 1, 2, 1)
    torch.save({"network_weights": network.state_dict()}, folder / "weights.pth")
    (folder / "targets.csv").write_text("case,age\ntiny_0,30\ntiny_2,40\n")
    (folder / "notes.txt").write_text("Not a checkpoint.\n")


def page() -> str:
    """The page; raises SystemExit where an answer is no line, or something was prepared."""
    rows, wrong = [], []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        here = os.getcwd()
        set_up(folder)
        try:
            for words in typed():
                code, said = answer(words)
                said = said.replace(str(folder), "...")
                shown = said.replace("|", "\\|").replace("\n", "<br>").replace("<", "&lt;").replace("&lt;br>", "<br>")
                rows.append(f"| `{shlex.join(words)}` | {shown} |".replace("'[64,64]'", "[64,64]"))
                prepared = os.listdir(folder / "nnUNet_preprocessed")
                if code not in (1, 2) or not said.startswith(words[0]) or prepared or "Traceback" in said:
                    wrong.append(f"{shlex.join(words)}: exit code {code}, prepared {prepared}: {said[-2000:]}")
        finally:
            os.chdir(here)
    if wrong:
        sys.exit("\n".join(wrong))
    return HEAD + "\n".join(rows) + "\n"


def main() -> int:
    """Write or compare; returns the exit code."""
    warnings.simplefilter("ignore")
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text)
        return 0
    there = PAGE.read_text() if PAGE.exists() else ""
    if there != text:
        lines = difflib.unified_diff(there.splitlines(), text.splitlines(), "docs/mistakes.md", "now", lineterm="")
        print("\n".join(lines), "\nRun python docs/make_mistakes.py, and read what has changed.", file=sys.stderr)
    return int(there != text)


if __name__ == "__main__":
    sys.exit(main())
