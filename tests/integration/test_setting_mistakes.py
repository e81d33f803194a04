"""Settings through the real commands, in fresh processes: what is converted, and mistakes that cost seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TINY = ["906", "--backbone", "resenc_tiny", "-np", "1", "-device", "cpu"]
# One process for all of them: each is a call of the command's entry point, and nothing may be prepared by any.
MISTAKES = """
import contextlib, io, json, os, sys, warnings
from nnunet_ssl.cli.pretrain import main
warnings.simplefilter("ignore")
told = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            main(arguments)
            code = 0
        except SystemExit as left:
            code = left.code
    told.append([code, said.getvalue(), os.listdir(os.environ["nnUNet_preprocessed"])])
print("TOLD", json.dumps(told))
"""
CASES = {
    "--set mae.normalise_target=perhaps": "normalise_target is true or false, found 'perhaps'.",
    "--method simclr --set simclr.crop_size=400": "crop of (400, 400, 400) voxels cannot be taken",
    "--method simclr --set simclr.crop_size=[64,64]": "a whole number >= 1, or one per axis, 3 of them, or null, found [64, 64].",
    '--method simclr --set simclr.temperature="-0.1"': "temperature must be a number > 0, found '-0.1'.",
    "--method simclr --set simclr.temperature=nan": "temperature must be a number > 0, found 'nan'.",
    "--method spark3d --set spark3d.mask_block=17": 'The next valid block is "mask_block": [24, 24, 24].',
    "--set datasets=745": "datasets must be a list, each a text that is not empty, found 745.",
    "--set seed=1 --set seed.x=2": "--set seed.x: only pretext tasks have settings of their own, and 'seed' is none.",
    "--set mae=3 --set mae.loss=l1": "contradict each other",
    "--seed -1": "seed must be a whole number >= 0, found -1.",
    "--set mae.mask_rato=0.5": "unknown setting 'mask_rato'. Did you mean 'mask_ratio'?",
    "--epochs 5 --set warmup_epochs=7": "Set warmup_epochs below num_epochs.",
    "--batch-size 7 --num-gpus 2": "--batch-size 8",
    "--set batch_size=true --set seed=True --set save_every=yes --set warmup_epochs=true --set mae.mask_ratio=2": (
        "The flags: batch_size must be a whole number >= 1, or null, found True. seed must be a whole number >= 0, found 'True'. "
        "save_every must be a whole number >= 1, found 'yes'. warmup_epochs must be a whole number >= 0, or null, found True. "
        "The flags, mae: mask_ratio must be a number above 0 and below 1, or a list, each a number above 0 and below 1, found 2."
    ),
}


def test_mistakes_are_one_line_each_before_an_image_is_read(nnunet_folders, run_command, tiny_dataset):
    tiny_dataset(nnunet_folders["nnUNet_raw"], 906, num_cases=2, num_labelled=0)
    arguments = [[*TINY, *mistake.split()] for mistake in CASES]
    done = run_command(["python", "-c", MISTAKES, json.dumps(arguments)], nnunet_folders)
    told = json.loads(done.stdout.rpartition("TOLD ")[2])
    for (mistake, message), (code, said, prepared) in zip(CASES.items(), told, strict=True):
        assert code == 1, mistake
        assert message in said, mistake
        assert len(said.splitlines()) == 1, mistake
        assert said.startswith("nnUNetv2_pretrain: "), mistake
        assert prepared == [], mistake


@pytest.mark.slow
def test_words_and_single_numbers_mean_what_they_say(nnunet_folders, run_command, tiny_dataset):
    tiny_dataset(nnunet_folders["nnUNet_raw"], 906, num_cases=3, num_labelled=0)
    values = {
        "mae.normalise_target": "False",
        "mae.mask_ratio": ".5",
        "mae.augmentation": "1",
        "simclr.crop_size": "16",
        "simclr.temperature": '"0.1"',
        "recompute": "no",
    }
    settings = [text for key, value in values.items() for text in ("--set", f"{key}={value}")]
    short = ["--epochs", "1", "--iterations-per-epoch", "1", "--val-iterations-per-epoch", "1"]
    done = run_command(["nnUNetv2_pretrain", *TINY, *short, *settings], {**nnunet_folders, "nnUNet_n_proc_DA": "0"})
    assert "normalise_target=False" in done.stdout
    assert "mask_ratio=0.5" in done.stdout
    (plans,) = Path(nnunet_folders["nnUNet_results"]).glob("Dataset906_Tiny/SSLMAETrainer__*/plans.json")
    block = json.loads(plans.read_text())["configurations"]["3d_fullres"]["ssl"]
    assert block["mae"] == {"normalise_target": False, "mask_ratio": 0.5, "augmentation": 1.0}
    assert block["simclr"] == {"crop_size": [16, 16, 16], "temperature": 0.1}
    assert block["recompute"] is False
