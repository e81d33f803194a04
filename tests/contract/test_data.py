"""What a batch holds depends on nothing but the seed and its place in the run."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from nnunet_ssl.corpus.table import write_table
from nnunet_ssl.errors import CorpusError, SettingsError
from nnunet_ssl.settings.blocks import PretrainSettings, read_config
from nnunet_ssl.trainers.data import loading
from nnunet_ssl.trainers.data.augmentation import augmentation
from nnunet_ssl.trainers.data.corpus import TRAINING, VALIDATION
from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.trainers.pretraining import SSLMAETrainer, trainer_class


def batches(trainer, count: int) -> tuple[list[dict], list[dict]]:
    trainer.initialize()
    training, validation = trainer.get_dataloaders()
    return list(itertools.islice(training, count)), list(itertools.islice(validation, count))


def same(first: list[dict], second: list[dict]) -> bool:
    return all(
        a["key"] == b["key"] and torch.equal(a["image"], b["image"]) and torch.equal(a["excluded"], b["excluded"])
        for a, b in zip(first, second, strict=True)
    )


def test_number_of_workers_changes_nothing(make_trainer, plans_for, monkeypatch):
    alone = batches(make_trainer(SSLMAETrainer, plans_for("unet")), 4)
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    helped = batches(make_trainer(SSLMAETrainer, plans_for("unet")), 4)
    assert same(alone[0], helped[0])
    assert same(alone[1], helped[1])


@pytest.mark.parametrize("method", ["mae", "volume_fusion"])
def test_where_patches_are_finished_changes_nothing(method, make_trainer, plans_for, preprocessed_dataset, monkeypatch):
    """As on a GPU: reading processes send boxes, with masks of what is anonymised; the step rotates, scales, mirrors."""
    file = preprocessed_dataset / "preprocessed" / "Dataset777_Tiny" / "dataset.json"
    file.write_text(file.read_text().replace('"structure"', '"anonymised"'))
    losses, kinds = [], set()
    for on_device in (False, True):
        monkeypatch.setattr(loading, "finishes", lambda device, on_device=on_device: on_device)
        plans = plans_for("unet", {"batch_size": 4, method: {"augmentation": 3.0}} if method == "mae" else {})
        trainer = make_trainer(trainer_class(method), plans)
        training, validation = batches(trainer, 3)
        outputs = [stepping.run_batch(trainer, b, TRAINING, step) for step, b in enumerate(training)]
        outputs += [stepping.run_batch(trainer, b, VALIDATION, step) for step, b in enumerate(validation)]
        losses.append([o.loss.item() for o in outputs])
        kinds.add(tuple("packed" in b for b in (*training, *validation)))
    assert kinds == {(False,) * 6, (True,) * 6}
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_seed_changes_everything_but_the_split(make_trainer, plans_for):
    first, other = (make_trainer(SSLMAETrainer, plans_for("unet", {"seed": s})) for s in (0, 1))
    assert first.do_split() == other.do_split()
    assert not same(batches(first, 2)[0], batches(other, 2)[0])


def test_training_starts_where_it_stopped(make_trainer, plans_for):
    whole = batches(make_trainer(SSLMAETrainer, plans_for("unet")), 5)[0]
    later = make_trainer(SSLMAETrainer, plans_for("unet"))
    later.initialize()
    later.current_epoch, later.position.replayed = 1, [{"loss": 0.0}]
    upcoming = list(itertools.islice(later.get_dataloaders()[0], 2))
    assert upcoming[0].result == {"loss": 0.0}
    assert same(whole[4:5], upcoming[1:])


def test_validation_batches_repeat_every_epoch(make_trainer, plans_for):
    validation = batches(make_trainer(SSLMAETrainer, plans_for("unet")), 4)[1]
    assert same(validation[:2], validation[2:])


def test_training_and_validation_cases_are_disjoint(make_trainer, plans_for):
    training, validation = make_trainer(SSLMAETrainer, plans_for("unet")).do_split()
    assert validation
    assert not set(training) & set(validation)
    assert len(training) + len(validation) == 8


def write_corpus_table(folder: Path) -> None:
    """Two images of each of four people, in the raw data set's folder."""
    (folder / "raw" / "Dataset777_Tiny").mkdir()
    cases = [f"tiny_{number:03d}" for number in range(8)]
    people = [f"person {number // 2}" for number in range(8)]
    rows = {"case": cases, "path": cases, "subject": people, "modality": ["T1w", "T2w"] * 4, "iqs": range(8)}
    write_table(pd.DataFrame(rows), str(folder / "raw" / "Dataset777_Tiny"))


def test_filter_chooses_after_the_split_by_subject(make_trainer, plans_for, preprocessed_dataset):
    write_corpus_table(preprocessed_dataset)
    everything = make_trainer(SSLMAETrainer, plans_for("unet")).do_split()
    assert [len(side) for side in everything] == [6, 2]
    assert len({int(identifier[-1]) // 2 for identifier in everything[1]}) == 1
    chosen = make_trainer(SSLMAETrainer, plans_for("unet", {"filter": 'modality == "T1w"'})).do_split()
    assert [len(side) for side in chosen] == [3, 1]
    assert all(set(few) < set(all_of) for few, all_of in zip(chosen, everything, strict=True))
    # Nobody of the held-out people matches: someone else is held out.
    held_out = int(everything[1][0][-1]) // 2
    others = make_trainer(SSLMAETrainer, plans_for("unet", {"filter": f'subject != "person {held_out}"'})).do_split()
    assert [len(side) for side in others] == [4, 2]
    with pytest.raises(CorpusError, match=r"None of the 8.*\n  iqs: 0 to 7"):
        make_trainer(SSLMAETrainer, plans_for("unet", {"filter": "iqs > 7"})).do_split()


def test_held_out_people_stay_held_out_when_images_are_added(make_trainer, plans_for, preprocessed_dataset):
    trainer = make_trainer(SSLMAETrainer, plans_for("unet"))
    before = trainer.do_split()
    folder = Path(trainer.preprocessed_dataset_folder)
    for number in range(40):
        for suffix in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"more_{number:03d}{suffix}").symlink_to(folder / f"tiny_000{suffix}")
    after = make_trainer(SSLMAETrainer, plans_for("unet")).do_split()
    assert after[1] == before[1]
    assert len(after[0]) == 47


def test_no_training_image_shows_someone_a_fold_is_tested_on(make_trainer, plans_for, preprocessed_dataset):
    write_corpus_table(preprocessed_dataset)
    training, validation = make_trainer(SSLMAETrainer, plans_for("unet"), fold=0).do_split()
    assert training
    assert validation
    assert not {int(i[-1]) // 2 for i in training} & {int(i[-1]) // 2 for i in validation}


def test_filter_and_sampling_belong_to_the_run(make_trainer, plans_for, preprocessed_dataset):
    write_corpus_table(preprocessed_dataset)
    ssl = {"num_epochs": 1, "warmup_epochs": 0, "filter": "iqs >= 2", "sampling": "subjects"}
    trainer = make_trainer(SSLMAETrainer, plans_for("unet", ssl))
    trainer.run_training()
    stored = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    assert stored["configurations"]["3d_fullres"]["ssl"]["filter"] == "iqs >= 2"
    file = trainer.output_folder + "/checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["ssl"]["settings"]["sampling"] == "subjects"
    assert "6 of 8 of Dataset777_Tiny" in Path(trainer.log_file).read_text()
    other = make_trainer(SSLMAETrainer, plans_for("unet", {**ssl, "filter": "iqs >= 1"}))
    with pytest.raises(SettingsError, match="filter: iqs >= 2 then, iqs >= 1 now"):
        other.load_checkpoint(file)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"filter": " "}, "filter must be an expression"),
        ({"sampling": "scanner"}, "images, subjects, modalities, datasets"),
        ({"min_foreground": 1}, "from 0 to below 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(block, message):
    with pytest.raises(SettingsError, match=message):
        read_config(PretrainSettings, block, "ssl")


def test_anonymised_voxels_are_excluded(make_trainer, plans_for, preprocessed_dataset):
    file = preprocessed_dataset / "preprocessed" / "Dataset777_Tiny" / "dataset.json"
    file.write_text(file.read_text().replace('"structure"', '"anonymised"'))
    drawn = batches(make_trainer(SSLMAETrainer, plans_for("unet")), 3)
    excluded = torch.cat([b["excluded"].flatten() for b in drawn[0] + drawn[1]])
    assert 0.01 < excluded.float().mean() < 0.5


def test_missing_preprocessed_data_says_what_to_type(make_trainer, plans_for, preprocessed_dataset):
    plans = plans_for("unet")
    plans["configurations"]["3d_fullres"]["data_identifier"] = "nowhere"
    with pytest.raises(FileNotFoundError, match="nnUNetv2_preprocess -d 777 -plans_name tinyPlans_unet -c 3d_fullres"):
        make_trainer(SSLMAETrainer, plans).run_training()


def test_finished_run_is_not_overwritten(make_trainer, plans_for):
    make_trainer(SSLMAETrainer, plans_for("unet", {"num_epochs": 1, "warmup_epochs": 0})).run_training()
    again = make_trainer(SSLMAETrainer, plans_for("unet", {"num_epochs": 1, "warmup_epochs": 0}))
    with pytest.raises(FileExistsError, match="--c to continue"):
        again.run_training()


def test_other_settings_cannot_continue_a_run(make_trainer, plans_for):
    first = make_trainer(SSLMAETrainer, plans_for("unet", {"num_epochs": 1, "warmup_epochs": 0}))
    first.run_training()
    other = make_trainer(SSLMAETrainer, plans_for("unet", {"num_epochs": 2, "mae": {"mask_ratio": 0.5}}))
    with pytest.raises(SettingsError, match=r"mask_ratio: 0.75 then, 0.5 now"):
        other.load_checkpoint(first.output_folder + "/checkpoint_final.pth")
    # A longer run in other parts is the same run, and so is one from before there were parts.
    checkpoint = torch.load(first.output_folder + "/checkpoint_final.pth", weights_only=True)
    del checkpoint["ssl"]["settings"]["accumulate"]
    longer = make_trainer(SSLMAETrainer, plans_for("unet", {"num_epochs": 2, "warmup_epochs": 0, "accumulate": 2}))
    longer.load_checkpoint(checkpoint)
    assert longer.current_epoch == 1


def test_cuda_without_a_gpu_says_what_to_type(make_trainer, plans_for, preprocessed_dataset):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    plans = {**plans_for("unet"), "continue_training": False}
    with pytest.raises(RuntimeError, match="-device cpu"):
        SSLMAETrainer(plans, "3d_fullres", "all", {}, torch.device("cuda"))


def test_strength_of_rotation_and_scaling(make_trainer, plans_for):
    found = {}
    for factor in (0.0, 1.0, 3.0, 9.0):
        drawn = augmentation(make_trainer(SSLMAETrainer, plans_for("unet", {"mae": {"augmentation": factor}})))
        found[factor] = drawn.p, drawn.rotation
    thirty = pytest.approx((-math.pi / 6, math.pi / 6))
    assert found == {0.0: (0, thirty), 1.0: (0.2, thirty), 3.0: (pytest.approx(0.6), thirty), 9.0: (1, thirty)}
