"""What we give away works where we are not installed, and comes back as it was."""

from __future__ import annotations

import getpass
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run import load_pretrained_weights as nnunet_loading

from nnunet_ssl.checkpoints.export.formats import export_nnssl, export_safetensors
from nnunet_ssl.checkpoints.hub.publish import files_of_export, refuse_private_content
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.checkpoints.write import save_checkpoint
from nnunet_ssl.cli.export import main
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.stock_export import export_stock_model, find_model
from nnunet_ssl.trainers.finetuning import SSLFinetuneTrainer, SSLScratchTrainer
from nnunet_ssl.trainers.pretraining import SSLMAETrainer

PRIMUS_S = {"embed_dim": 396, "eva_depth": 12, "eva_numheads": 6}
SECRET = "/home/alice/patients/case_0815"

# Prediction, and loading of pre-trained weights, by an nnU-Net that has never heard of us.
STOCK = """
import json, sys
import numpy as np
import torch

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nnunet_ssl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
torch.set_num_threads(1)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

job = json.load(open(sys.argv[1]))
image = np.load(job["image"])
for name, model in job["models"].items():
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model["folder"], model["folds"], "checkpoint_final.pth")
    found = predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}, None, None, True)
    np.savez(f"{job['out']}/{name}.npz", segmentation=found[0], probabilities=found[1])
trainer = nnUNetTrainer({**job["plans"], "continue_training": False}, "3d_fullres", 0, job["dataset_json"], torch.device("cpu"))
trainer.initialize()
load_pretrained_weights(trainer.network, job["pretrained"], verbose=False)
saved = torch.load(job["pretrained"], weights_only=True)["network_weights"]
loaded = trainer.network.state_dict()
assert all(torch.equal(loaded[k], saved[k]) for k in loaded if ".seg_layers." not in k)
assert not any(m.startswith("nnunet_ssl") for m in sys.modules)
print("stock nnU-Net is done")
"""


@pytest.fixture
def one_thread():
    """Sums of several threads differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pretrained(make_trainer, plans_for):
    """Function (backbone) -> path of a checkpoint after one epoch of pre-training on data with a private path."""

    def pretrain(backbone: str) -> Path:
        plans = plans_for(backbone, {"num_epochs": 1, "warmup_epochs": 0})
        plans["pretrain_info"] = {"checkpoint_path": f"{SECRET}.pth"}
        trainer = make_trainer(SSLMAETrainer, plans)
        trainer.dataset_json["dataset"] = {"case_0815": {"images": [f"{SECRET}.nii.gz"]}}
        trainer.run_training()
        return Path(trainer.output_folder) / "checkpoint_final.pth"

    return pretrain


def finetuned(make_trainer, plans, folds=(0,), epochs: bool = True) -> Path:
    """Model folder of a network trained for an epoch, or only initialised."""
    plans["configurations"]["3d_fullres"]["preprocessor_name"] = "SSLPreprocessor"
    for fold in folds:
        trainer = make_trainer(SSLScratchTrainer, plans, fold)
        if epochs:
            trainer.run_training()
        else:
            trainer.initialize()
            trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    folder = Path(trainer.output_folder_base)
    dataset_json = {**trainer.dataset_json, "dataset": {"case_0815": {"images": [f"{SECRET}.nii.gz"]}}}
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    (folder / "plans.json").write_text(json.dumps({**plans, "notes": f"made from {SECRET}/x"}))
    (folder / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1, 1]], "cases": ["case_0815"]}))
    return folder


def predict(folder: Path, folds: tuple[int, ...], image: np.ndarray) -> list[np.ndarray]:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
    return predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}, None, None, True)


def all_bytes(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def assert_nothing_private(folder: Path, *places: Path) -> None:
    content = all_bytes(folder)
    secrets = [b"alice", b"case_0815", b"/home", *(str(p).encode() for p in places)]
    names = [n.encode() for n in (getpass.getuser(), platform.node()) if len(n) > 5]  # short ones occur by chance
    assert [s for s in [*secrets, *names] if s in content] == []


@pytest.mark.slow
def test_stock_nnunet_gives_the_same_to_the_last_bit(
    make_trainer, plans_for, dataset_json, pretrained, run_command, tmp_path, one_thread, capsys
):
    """U-Net with two folds and test-time mirroring, Primus-S, and a file for -pretrained_weights: plugin unimportable."""
    short = {"num_epochs": 1, "warmup_epochs": 0}
    unet = finetuned(make_trainer, plans_for("unet", finetune=short), (0, 1))
    plans = plans_for("primus", finetune=short)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(PRIMUS_S)
    primus = finetuned(make_trainer, plans, epochs=False)
    image = np.random.default_rng(0).normal(size=(1, 20, 28, 20)).astype(np.float32)
    here = {"unet": predict(unet, (0, 1), image), "primus": predict(primus, (0,), image)}
    assert len(np.unique(here["unet"][0])) > 1 or np.ptp(here["unet"][1]) > 0

    main([str(unet), "-o", str(tmp_path / "out")])
    main([str(primus / "fold_0"), "-o", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "nnUNetv2_predict_from_modelfolder" in said
    assert "optimizer_state" in said
    exported = {
        "unet": tmp_path / "out" / "nnUNetTrainer__tinyPlans_unet__3d_fullres",
        "primus": tmp_path / "out" / "nnUNet_Primus_S_Trainer__tinyPlans_primus__3d_fullres",
    }
    main([str(pretrained("unet")), "-o", str(tmp_path / "nnssl")])
    shutil.rmtree(unet)
    shutil.rmtree(primus)
    np.save(tmp_path / "image.npy", image)
    job = {
        "image": str(tmp_path / "image.npy"),
        "models": {n: {"folder": str(f), "folds": [0, 1] if n == "unet" else [0]} for n, f in exported.items()},
        "out": str(tmp_path),
        "plans": plans_for("unet"),
        "dataset_json": dataset_json,
        "pretrained": str(tmp_path / "nnssl" / "checkpoint_final.pth"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "script.py").write_text(STOCK)
    environment = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1"}
    done = run_command(["python", tmp_path / "script.py", tmp_path / "job.json"], environment, cwd=tmp_path)
    assert "stock nnU-Net is done" in done.stdout
    for name, (segmentation, probabilities) in here.items():
        there = np.load(tmp_path / f"{name}.npz")
        assert np.array_equal(there["segmentation"], segmentation), name
        assert np.array_equal(there["probabilities"], probabilities), name
        assert_nothing_private(exported[name], tmp_path)
        settings = json.loads((exported[name] / "plans.json").read_text())["configurations"]["3d_fullres"]
        assert settings["preprocessor_name"] == "DefaultPreprocessor"
        assert not {"ssl", "finetune"} & settings.keys()


def test_small_primus_is_refused_with_a_way_out(make_trainer, plans_for, tmp_path, capsys):
    """That stock nnU-Net cannot build it is checked here, not believed."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = plans_for("primus")
    folder = finetuned(make_trainer, plans, epochs=False)
    stock = make_trainer(nnUNetTrainer, plans)
    with pytest.raises(TypeError, match="deep_supervision"):
        nnUNetTrainer.build_network_architecture(stock.plans_manager, stock.configuration_manager, 1, 2, False)
    with pytest.raises(SystemExit):
        main([str(folder), "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "no trainer that builds this Primus (width 72" in said
    assert "pip install nnunet_ssl" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backbone", ["unet", "primus"])
def test_round_trips_and_fine_tuning_from_them(backbone, make_trainer, plans_for, pretrained, tmp_path):
    """ours -> nnssl -> ours and ours -> safetensors -> ours: equal weights, and the same transfer report."""
    original = pretrained(backbone)
    checkpoint = read_checkpoint(original)
    made = {
        "nnssl": (export_nnssl(checkpoint, tmp_path / "nnssl"), tmp_path / "nnssl" / "checkpoint_final.pth"),
        "safetensors": (export_safetensors(checkpoint, tmp_path / "st"), tmp_path / "st" / "model.safetensors"),
    }
    reports, networks = {}, {}
    for name, path in {"original": original, **{n: file for n, (_, file) in made.items()}}.items():
        weights = read_checkpoint(path)["network_weights"]
        assert list(weights) == list(checkpoint["network_weights"])
        assert all(torch.equal(weights[k], v) for k, v in checkpoint["network_weights"].items())
        trainer = make_trainer(SSLFinetuneTrainer, plans_for(backbone), 0)
        trainer.initialize()
        nnunet_loading.load_pretrained_weights(trainer.network, str(path), verbose=False)
        reports[name] = trainer.network.nnunet_ssl_transfer_report.to_json()
        assert Path(reports[name]["source_info"].pop("origin")["path"]).samefile(path)
        networks[name] = trainer.network.state_dict()
        shutil.rmtree(trainer.output_folder)
    assert reports["nnssl"] == reports["original"] == reports["safetensors"]
    for name in made:
        assert all(torch.equal(networks[name][k], v) for k, v in networks["original"].items())
        assert_nothing_private(made[name][1].parent, tmp_path)
        refuse_private_content(files_of_export(made[name][1].parent), made[name][1].parent)
    rest = [{k: v for k, v in read_checkpoint(f).items() if k != "network_weights"} for _, f in made.values()]
    assert rest[0] == rest[1] == json.loads((tmp_path / "st" / "config.json").read_text())
    removed = made["nnssl"][0].removed
    assert {"optimizer_state", "logging", "init_args.dataset_json.dataset"} <= set(removed)
    assert rest[0]["init_args"]["dataset_json"]["channel_names"] == {"0": "MRI"}


def test_models_stock_nnunet_would_not_understand_are_refused(make_trainer, plans_for, tmp_path):
    """A trainer with a network of its own, folds of two trainers, missing folds; and what is written passes the hub's check."""
    folder = finetuned(make_trainer, plans_for("unet"), (0, 1), epochs=False)
    model = find_model(str(folder))
    assert model is not None
    assert list(model.checkpoints) == ["0", "1"]
    with pytest.raises(CheckpointError, match=r"no checkpoint_final\.pth in fold_3; it has one in fold_0, fold_1"):
        find_model(str(folder), ["3"])
    with pytest.raises(CheckpointError, match="in any fold"):
        find_model(str(folder), name="checkpoint_best.pth")
    assert find_model(str(folder / "fold_1" / "checkpoint_final.pth")).checkpoints.keys() == {"1"}  # type: ignore[union-attr]
    assert find_model("AnonRes/ResEncL-OpenMind-MAE") is None

    exported, made = export_stock_model(model, tmp_path / "out")
    refuse_private_content(files_of_export(exported), exported)
    assert "dataset.json.dataset" in made.removed
    assert json.loads((exported / "dataset_fingerprint.json").read_text()) == {"spacings": [[1, 1, 1]]}
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_stock_model(model, tmp_path / "out")
    (exported / "fold_0" / "progress.png").write_bytes(b"of a training")
    with pytest.raises(FileExistsError, match=r"fold_0/progress\.png"):
        export_stock_model(model, tmp_path / "out", overwrite=True)

    checkpoint = read_checkpoint(model.checkpoints["1"])
    save_checkpoint({**checkpoint, "trainer_name": "nnUNetTrainer"}, model.checkpoints["1"])
    with pytest.raises(CheckpointError, match="do not belong together"):
        export_stock_model(model, tmp_path / "other")
    only = find_model(str(folder), ["1"])
    assert only is not None
    for name, message in (("nnUNetTrainerBN", "network of its own"), ("SSLMAETrainer", None)):
        save_checkpoint({**checkpoint, "trainer_name": name}, model.checkpoints["1"])
        if message is None:  # the plans' own network, whatever the trainer is called
            export_stock_model(only, tmp_path / "other")
        else:
            with pytest.raises(CheckpointError, match=message):
                export_stock_model(only, tmp_path / "other")
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["SomebodysNormalization"]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(CheckpointError, match=r"SomebodysNormalization \(normalization_schemes of \"3d_fullres\""):
        export_stock_model(only, tmp_path / "third")


def test_pretraining_is_no_model(pretrained, tmp_path, capsys):
    checkpoint = pretrained("unet")
    with pytest.raises(SystemExit):
        main([str(checkpoint), "-o", str(tmp_path / "out"), "--format", "nnunet"])
    said = capsys.readouterr().err
    assert f"-pretrained_weights {checkpoint}" in said
    assert "--format nnssl" in said
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(checkpoint.parent)
