"""Plans for fine-tuning: which network, which geometry, which normalisation, and what is told or refused."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.description.conventions import Conventions, read_conventions
from nnunet_ssl.checkpoints.networks.spec import NetworkSpec, checked_spec
from nnunet_ssl.checkpoints.networks.stated import network_of
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.cli.plan_finetune import main
from nnunet_ssl.errors import CheckpointError, CorpusError
from nnunet_ssl.planners.finetuning.existing_plans import write_variant
from nnunet_ssl.planners.finetuning.finetune_geometry import patch_like, patch_within_budget, require_fitting_patch
from nnunet_ssl.planners.finetuning.finetune_plans import Wishes, choose_schemes
from nnunet_ssl.planners.finetuning.plan_finetune import checked_name, plan_finetuning

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "fixtures"
NAME = "Dataset701_Target"
INTENSITIES = {"mean": 1, "median": 1, "std": 1, "min": 0, "max": 2, "percentile_99_5": 2, "percentile_00_5": 0}
PRIMUS = {
    "embed_dim": 36,
    "patch_embed_size": [8, 8, 8],
    "eva_depth": 1,
    "eva_numheads": 2,
    "init_values": 0.1,
    "scale_attn_inner": True,
}

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"nnssl checkpoints are not in {FIXTURES}")


def unet(axes: int = 3) -> dict[str, Any]:
    return {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[3] * axes] * 3,
        "strides": [[1] * axes, [1, 2, 2][-axes:], [2] * axes],
        "n_blocks_per_stage": [1, 2, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def spec_of(backbone: str) -> NetworkSpec:
    if backbone == "primus":
        return checked_spec("Primus", PRIMUS, "a test")
    return checked_spec("ResidualEncoderUNet", unet(2 if backbone == "unet2d" else 3), "a test")


def weights_of(spec: NetworkSpec, patch: tuple[int, ...]) -> dict[str, torch.Tensor]:
    network = spec.build_empty(1, 2, patch)
    return {k: torch.randn(v.shape) * 0.02 for k, v in network.state_dict().items()}


def nnunet_checkpoint(backbone: str, **changes: Any) -> dict[str, Any]:
    """As nnU-Net saves it: weights, and the plans they were trained with."""
    spec = spec_of(backbone)
    patch, axes = ([16] * spec.ndim, spec.ndim)
    settings = {
        "patch_size": patch,
        "batch_size": 3,
        "spacing": [1.0] * axes,
        "normalization_schemes": ["ZScoreNormalization"],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "architecture": spec.architecture(patch),
        **changes,
    }
    name = "2d" if axes == 2 else "3d_fullres"
    plans = {
        "dataset_name": "Dataset001_Source",
        "transpose_forward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "configurations": {"base": settings, name: {"inherits_from": "base"}},
    }
    return {
        "network_weights": weights_of(spec, tuple(patch)),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"plans": plans, "configuration": name, "dataset_json": {"channel_names": {"0": "T1w"}}},
    }


@pytest.fixture
def dataset(nnunet_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A labelled data set of one channel with a fingerprint of anisotropic images; the files themselves are empty."""
    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    raw = Path(nnunet_folders["nnUNet_raw"]) / NAME
    for sub in ("imagesTr", "labelsTr"):
        (raw / sub).mkdir(parents=True)
    for case in "abc":
        (raw / "imagesTr" / f"{case}_0000.nii.gz").touch()
        (raw / "labelsTr" / f"{case}.nii.gz").touch()
    describe_channel(raw, "MR")
    folder = Path(nnunet_folders["nnUNet_preprocessed"]) / NAME
    folder.mkdir()
    write_fingerprint(folder, [40, 50, 20], [1.0, 1.0, 4.0])
    return folder


def write_fingerprint(folder: Path, shape: list[int], spacing: list[float]) -> None:
    content = {
        "spacings": [spacing] * 3,
        "shapes_after_crop": [shape] * 3,
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES, "1": INTENSITIES},
        "median_relative_size_after_cropping": 1.0,
    }
    (folder / "dataset_fingerprint.json").write_text(json.dumps(content))


def describe_channel(raw: Path, *names: str, labels: dict[str, int] | None = None) -> None:
    content = {
        "channel_names": {str(i): name for i, name in enumerate(names)},
        "labels": labels or {"background": 0, "a": 1, "b": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))


def raw_of(dataset: Path) -> Path:
    return dataset.parent.parent / "nnUNet_raw" / NAME


def plan(dataset: Path, checkpoint: dict[str, Any] | Path, *flags: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the command without preprocessing; (plans, their configuration)."""
    path = checkpoint if isinstance(checkpoint, Path) else dataset.parent.parent / "weights.pth"
    if isinstance(checkpoint, dict):
        torch.save(checkpoint, path)
    before = set(dataset.glob("*.json"))
    main(["-d", "701", "-pretrained_weights", str(path), "--no-preprocess", *flags])
    (new,) = {f for f in set(dataset.glob("*.json")) - before if f.name != "dataset.json"}
    plans = json.loads(new.read_text())
    assert new.stem == plans["plans_name"]
    (configuration,) = plans["configurations"].values()
    return plans, configuration


# ---------------------------------------------------------------------------------------------- which network


@pytest.mark.parametrize("backbone", ["unet", "unet2d", "primus"])
def test_network_is_read_from_the_plans_or_from_the_shapes(backbone: str) -> None:
    checkpoint = nnunet_checkpoint(backbone)
    weights, _ = canonical_weights(checkpoint)
    stated = network_of(checkpoint, weights)
    assert stated.source == "the plans in the file"
    assert stated.stride == {"unet": (2, 4, 4), "unet2d": (4, 4), "primus": (8, 8, 8)}[backbone]
    if backbone == "primus":
        return  # how many heads a width of 36 has cannot be told
    bare = network_of({}, weights)
    assert bare.source == "the shapes of the weights"
    assert bare.architecture([16] * bare.ndim) == stated.architecture([16] * stated.ndim)


@needs_fixtures
@pytest.mark.parametrize("folder", sorted(f.parent.name for f in FIXTURES.glob("*/full_size*.json")))
def test_published_networks_are_the_presets(folder: str) -> None:
    (file,) = (FIXTURES / folder).glob("full_size*.json")
    content = json.loads(file.read_text())
    shapes = content.get("saved_network_weights_shapes") or content["shapes"]
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    checkpoint = {
        "network_weights": weights,
        "trainer_name": content["trainer"],
        "nnssl_adaptation_plan": content["adaptation_plan"],
    }
    weights, _ = canonical_weights(checkpoint)
    network = network_of(checkpoint, weights)
    assert network.source == "its nnssl_adaptation_plan"
    bare = network_of({}, weights)
    assert bare.kwargs == network.kwargs
    assert str(network).startswith(
        ("PrimusM ", "ResEncL ", "ResidualEncoderUNet (features 32, 64, 128, 256, 512, 512)")
    )


@needs_fixtures
@pytest.mark.parametrize("file", sorted(FIXTURES.glob("*/checkpoint_tiny.pth")), ids=lambda f: f.parent.name)
def test_a_plan_that_the_weights_contradict_is_not_believed(file: Path) -> None:
    checkpoint = read_checkpoint(file)
    weights, _ = canonical_weights(checkpoint)
    network = network_of(checkpoint, weights)
    assert network.source == "the shapes of the weights"
    assert network.kwargs.get("embed_dim", 72) == 72
    assert network.kwargs.get("features_per_stage", [8])[0] == 8
    if "nnssl_adaptation_plan" in checkpoint:
        assert "where that network has" in network.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_op": "os.system"}, "names from files are never imported"),
        ({"conv_op": "evil.nn.Conv3d"}, "names from files are never imported"),
        ({"norm_op": "subprocess.Popen"}, "names from files are never imported"),
        ({"nonlin": "builtins.eval"}, "names from files are never imported"),
        ({"nonlin_kwargs": {"callback": 1}}, "expected nothing but"),
        ({"n_stages": 10**9}, "whole number from 1 to 16"),
        ({"features_per_stage": [4, 8, float("inf")]}, "whole number"),
        ({"features_per_stage": [[[[1]]]]}, "too long or too deep"),
        ({"strides": [[1, 1], [2, 2], [2, 2]]}, "3 entries of 3 numbers"),
        ({"norm_op": "torch.nn.InstanceNorm2d"}, "one for 3 axes"),
        ({"block": "os.system"}, "not on our list: block"),
    ],
)
def test_hostile_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checked_spec("ResidualEncoderUNet", {**unet(), **change}, "a file")


@pytest.mark.parametrize("name", ["os.system", "evil.ResidualEncoderUNet", "torch.hub.load", "NoSuchNet"])
def test_classes_named_by_files_are_looked_up_not_imported(name: str) -> None:
    with pytest.raises(CheckpointError, match="never imported"):
        checked_spec(name, unet(), "a file")
    architecture = {"network_class_name": name, "arch_kwargs": unet(), "_kw_requires_import": ["conv_op"]}
    checkpoint = nnunet_checkpoint("unet", architecture=architecture)
    with pytest.raises(CheckpointError, match="never imported"):
        network_of(checkpoint, canonical_weights(checkpoint)[0])


def test_networks_of_other_programs_are_named_as_such() -> None:
    weights = {"swinViT.patch_embed.proj.weight": torch.zeros(2, 1, 2, 2, 2), "decoder1.conv.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"no network that nnU-Net builds.*swinViT"):
        network_of({}, weights)


# ---------------------------------------------------------------------------------------------- which geometry


def test_patch_within_budget() -> None:
    assert patch_within_budget([1, 1, 1], [500, 500, 500], [32] * 3, 160**3) == [160, 160, 160]
    assert patch_within_budget([1, 1, 1], [36, 50, 35], [8] * 3, 160**3) == [40, 56, 40]
    assert patch_within_budget([1, 1, 1], [20, 20, 20], [32] * 3, 160**3) == [64, 32, 32]
    thin = patch_within_budget([6.5, 0.7, 0.7], [22, 500, 500], [8] * 3, 64**3)
    assert thin[0] == 8  # the thinnest a multiple of 8 allows: 22 slices are most of the image
    assert thin[1] * thin[2] * thin[0] <= 64**3
    assert patch_within_budget([1, 1], [400, 300], [32, 32], 256**2) == [288, 224]


def test_patch_like_is_cut_to_the_images() -> None:
    assert patch_like([160] * 3, [300, 100, 33], [32] * 3) == [160, 128, 64]
    assert patch_like([64] * 3, [5, 5, 5], [8] * 3) == [16, 8, 8]


def test_patch_sizes_the_network_cannot_take() -> None:
    assert require_fitting_patch([64], (8, 8, 8)) == [64, 64, 64]
    with pytest.raises(CorpusError, match=r"multiples of 2 x 4 x 4.* 20 x 20 x 20 and 22 x 24 x 24"):
        require_fitting_patch([21, 21, 21], (2, 4, 4))
    with pytest.raises(CorpusError, match="1 or 2 numbers"):
        require_fitting_patch([64, 64, 64], (4, 4))
    with pytest.raises(CorpusError, match="at least 16"):
        require_fitting_patch([8], (8, 8, 8))


@pytest.mark.parametrize("backbone", ["unet", "primus"])
def test_every_way_to_adapt(backbone: str, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = nnunet_checkpoint(backbone)
    plans, like = plan(dataset, checkpoint, "--from-scratch")
    assert (like["spacing"], plans["transpose_forward"]) == ([1, 1, 1], [0, 1, 2])
    assert like["patch_size"] == [16, 16, 16]
    assert like["batch_size"] == 3
    assert like["preprocessor_name"] == "DefaultPreprocessor"
    assert like["finetune"] == {"transfer": "encoder+decoder"}
    assert like["architecture"] == spec_of(backbone).architecture([16, 16, 16])
    assert plans["pretraining"]["adapt"] == "like_pretrained"
    assert "path" not in plans["pretraining"]
    said = capsys.readouterr().out
    weights = dataset.parent.parent / "weights.pth"
    train = f"nnUNetv2_train 701 3d_fullres all -tr SSLFinetuneTrainer -p {plans['plans_name']}"
    assert f"{train} -pretrained_weights {weights}\n" in said
    assert f"-tr SSLScratchTrainer -p {plans['plans_name']}\n" in said
    assert "100.0% of the encoder's parameters" in said
    assert "NOTE" not in said

    plans, own = plan(dataset, checkpoint, "--adapt", "like_dataset", "--batch-size", "5", "--epochs", "7")
    assert (own["spacing"], plans["transpose_forward"]) == ([4, 1, 1], [2, 0, 1])  # nnU-Net: largest spacing first
    assert (own["batch_size"], own["finetune"]["num_epochs"]) == (5, 7)
    assert own["median_image_size_in_voxels"] == [20, 40, 50]
    assert all(s % t == 0 for s, t in zip(own["patch_size"], spec_of(backbone).stride, strict=True))
    assert own["data_identifier"] != like["data_identifier"]
    said = capsys.readouterr().out
    assert "these plans use 4 x 1 x 1 mm: along one axis a structure takes up only 1/4 of the voxels" in said
    assert "axes are in another order: 0, 1, 2 in the pre-training, 2, 0, 1 here" in said

    plans, fixed = plan(dataset, checkpoint, "--adapt", "fixed", "--spacing", "2", "1", "3", "--patch-size", "16")
    assert (fixed["spacing"], plans["transpose_forward"]) == ([3, 2, 1], [2, 0, 1])
    assert fixed["patch_size"] == [16, 16, 16]

    plans, native = plan(dataset, checkpoint, "--adapt", "no_resample")
    for what in ("data", "seg", "probabilities"):
        assert native[f"resampling_fn_{what}"] == "no_resampling_hack"
    assert native["spacing"] == [4, 1, 1]
    assert "not_resampled" in native["data_identifier"]


def test_pretraining_without_resampling_goes_on_without_it(dataset: Path) -> None:
    checkpoint = nnunet_checkpoint("primus", resampling_fn_data="no_resampling_hack", spacing=[3.0, 1.0, 1.0])
    assert Wishes().resolved_adapt(read_conventions(checkpoint)) == "like_dataset"
    _, configuration = plan(dataset, checkpoint, "--adapt", "like_pretrained")
    assert configuration["resampling_fn_data"] == "no_resampling_hack"


def test_slices(dataset: Path) -> None:
    plans, configuration = plan(dataset, nnunet_checkpoint("unet2d"), "--adapt", "like_dataset")
    assert list(plans["configurations"]) == ["2d"]
    assert (configuration["spacing"], len(configuration["patch_size"])) == ([1, 1], 2)
    _, like = plan(dataset, nnunet_checkpoint("unet2d", spacing=[0.5, 0.5]))
    assert like["spacing"] == [0.5, 0.5]
    _, fixed = plan(dataset, nnunet_checkpoint("unet2d"), "--spacing", "0.7", "0.8")
    assert fixed["spacing"] == [0.7, 0.8]


def test_volumes_and_slices_do_not_mix(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fingerprint(dataset, [1, 50, 40], [999.0, 1.0, 1.0])
    with pytest.raises(SystemExit):
        plan(dataset, nnunet_checkpoint("unet"))
    assert "holds 2-D images, and the checkpoint's network is one for volumes" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- which normalisation


@pytest.mark.parametrize(
    ("own", "pretraining", "expected"),
    [
        (["CTNormalization"], ["ZScoreNormalization"], ["CTNormalization"]),
        (["ZScoreNormalization"], ["CTNormalization"], ["ZScoreNormalization"]),
        (["CTNormalization", "ZScoreNormalization"], ["RescaleTo01Normalization"] * 3, None),
        (["ZScoreNormalization"], [], ["ZScoreNormalization"]),
        (["ZScoreNormalization"], ["NoNormalization", "ZScoreNormalization"], ["ZScoreNormalization"]),
        (["ZScoreNormalization"], ["unknown (os.system)"], ["ZScoreNormalization"]),
    ],
)
def test_choose_schemes(own: list[str], pretraining: list[str], expected: list[str] | None) -> None:
    assert choose_schemes(own, pretraining) == (expected or ["CTNormalization", "RescaleTo01Normalization"])


def test_ct_after_mr_keeps_hounsfield_units_and_says_so(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe_channel(raw_of(dataset), "CT", "T2w")
    for case in "abc":
        (raw_of(dataset) / "imagesTr" / f"{case}_0001.nii.gz").touch()
    plans, configuration = plan(dataset, nnunet_checkpoint("primus"))
    assert configuration["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    assert plans["foreground_intensity_properties_per_channel"]["0"] == INTENSITIES
    said = capsys.readouterr().out
    assert "Pre-trained on T1w images normalised by ZScoreNormalization" in said
    assert 'your channel 0 ("CT") is normalised by CTNormalization' in said
    assert "channel 1" not in said
    assert "Pre-trained on 1 input channel, this data set has 2" in said
    assert len(plans["pretraining"]["differences"]) == 2


def test_conventions_that_make_no_sense_count_as_not_stated() -> None:
    checkpoint = nnunet_checkpoint("unet", spacing=[float("nan"), 1, 1], normalization_schemes=["os.system"])
    checkpoint["init_args"]["plans"]["transpose_forward"] = [0, 0, 7]
    conventions = read_conventions(checkpoint)
    assert conventions.spacing is None
    assert conventions.transpose_forward is None
    assert conventions.normalization == ("unknown (os.system)",)
    assert read_conventions({}) == Conventions()


# ---------------------------------------------------------------------------------------------- what is refused


def test_plans_are_never_overwritten(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = nnunet_checkpoint("primus")
    plans, _ = plan(dataset, checkpoint, "-plans_name", "mine")
    path = dataset / "mine.json"
    written = path.read_bytes()
    arguments = ["-d", "701", "-pretrained_weights", str(dataset.parent.parent / "weights.pth"), "-o", "mine"]
    main([*arguments, "--no-preprocess"])
    assert "The same plans are there already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--no-preprocess", "--batch-size", "9"])
    error = capsys.readouterr().err
    assert f"{path} exists and holds other plans" in error
    assert "-plans_name mine_2" in error
    assert path.read_bytes() == written
    assert plans["plans_name"] == "mine"


@pytest.mark.parametrize("name", ["nnUNetPlans", "nnUNetResEncUNetLPlans", "a__b", "../x", "a b", "x.json"])
def test_names_nnunet_could_not_live_with(name: str) -> None:
    with pytest.raises(CorpusError, match="-plans_name nnUNetFinetunePlans_mine"):
        checked_name(name)


def test_different_checkpoints_get_different_plans(dataset: Path) -> None:
    first, _ = plan(dataset, nnunet_checkpoint("primus"))
    second, _ = plan(dataset, nnunet_checkpoint("primus"))
    assert first["plans_name"] != second["plans_name"]
    identifiers = [p["configurations"]["3d_fullres"]["data_identifier"] for p in (first, second)]
    assert identifiers[0] == identifiers[1]  # the same images: preprocessed once


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adapt", "fixed"], "add --spacing 1 1 1"),
        (["--adapt", "like_dataset", "--spacing", "1", "1", "1"], "--spacing belongs to --adapt fixed"),
        (["--spacing", "1", "1"], "wants 3 numbers"),
        (["--spacing", "1", "1", "-2"], "wants 3 numbers"),
        (["--patch-size", "20"], "next valid sizes are 16 x 16 x 16 and 24 x 24 x 24"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_flags_that_cannot_be_right(
    flags: list[str], message: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        plan(dataset, nnunet_checkpoint("primus"), *flags)
    assert message in capsys.readouterr().err


def test_a_data_set_without_labels(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in (raw_of(dataset) / "labelsTr").iterdir():
        label.unlink()
    with pytest.raises(SystemExit):
        plan(dataset, nnunet_checkpoint("primus"))
    error = capsys.readouterr().err
    assert f"{NAME} has no label files" in error
    assert "nnUNetv2_pretrain 701" in error


def test_some_images_without_label(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw_of(dataset) / "labelsTr" / "a.nii.gz").unlink()
    _, configuration = plan(dataset, nnunet_checkpoint("primus"))
    assert configuration["preprocessor_name"] == "SSLPreprocessor"  # nnU-Net's own stops at the first such image
    assert "1 of 3 images" in capsys.readouterr().out


def test_a_bare_state_dict(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = nnunet_checkpoint("unet")["network_weights"]
    checkpoint = {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}
    plans, configuration = plan(dataset, checkpoint)
    assert plans["pretraining"]["adapt"] == "like_dataset"
    assert configuration["architecture"] == spec_of("unet").architecture(configuration["patch_size"])
    assert configuration["finetune"]["transfer"] == "encoder"
    assert "does not state the spacing" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        plan(dataset, checkpoint, "--adapt", "like_pretrained")
    assert "has nothing to go by" in capsys.readouterr().err


def test_weights_that_are_not_finite_write_nothing(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = deepcopy(nnunet_checkpoint("unet"))
    checkpoint["network_weights"]["encoder.stages.1.blocks.0.conv1.all_modules.0.weight"][0] = float("nan")
    before = set(dataset.iterdir())
    with pytest.raises(SystemExit):
        plan(dataset, checkpoint)
    assert "NaN or infinite" in capsys.readouterr().err
    assert set(dataset.iterdir()) == before


def test_our_own_checkpoints_bring_their_finetune_block(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ssl = {"method": "spark3d", "backbone": "unet", "patch_size": [16, 16, 16], "num_input_channels": 1}
    block = {"num_epochs": 30, "num_iterations_per_epoch": 50}
    plans, configuration = plan(dataset, {**nnunet_checkpoint("unet", finetune=block), "ssl": ssl})
    assert configuration["finetune"] == {"transfer": "encoder+decoder", **block}
    assert plans["plans_name"].startswith("nnUNetFinetunePlans_spark3d_unet_")
    with pytest.raises(SystemExit):
        plan(dataset, {**nnunet_checkpoint("unet", finetune={"num_epoch": 30}), "ssl": ssl})
    assert "unknown setting 'num_epoch'" in capsys.readouterr().err


def test_labels_without_a_class(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe_channel(raw_of(dataset), "MR", labels={"background": 0})
    with pytest.raises(SystemExit):
        plan(dataset, nnunet_checkpoint("unet"))
    assert "no label besides the background" in capsys.readouterr().err


def test_lengths_and_batches_are_in_the_plans_and_in_their_names(dataset: Path) -> None:
    flags = "--epochs 3 --iterations-per-epoch 5 --batch-size 4 --save-every 2 --early-stop 7"
    plans, settings = plan(dataset, nnunet_checkpoint("unet"), *flags.split())
    wanted = {"num_epochs": 3, "num_iterations_per_epoch": 5, "save_every": 2, "early_stop": 7}
    assert wanted.items() <= settings["finetune"].items()
    assert settings["batch_size"] == 4
    assert plans["plans_name"].endswith("_3ep_5it_batch4_save2_stop7")


def test_edited_plans_are_kept_as_long_as_they_do_what_is_asked(dataset: Path) -> None:
    torch.save(nnunet_checkpoint("unet"), dataset.parent.parent / "weights.pth")
    text = str(dataset.parent.parent / "weights.pth")

    def again(wishes: Wishes, keep: bool = True) -> dict[str, Any]:
        return plan_finetuning(NAME, text, wishes, plans_name="Mine", preprocess=False, keep=keep).plans

    plans = again(Wishes(epochs=3))
    plans["configurations"]["3d_fullres"]["finetune"]["warmup_epochs"] = 2
    (dataset / "Mine.json").write_text(json.dumps(plans))
    assert again(Wishes(epochs=3)) == plans
    for wishes, keep in ((Wishes(epochs=4), True), (Wishes(batch_size=7), True), (Wishes(epochs=3), False)):
        with pytest.raises(CorpusError, match="holds other plans, which are never overwritten"):
            again(wishes, keep)


def test_another_length_of_existing_plans_is_a_copy_of_them(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans, _ = plan(dataset, nnunet_checkpoint("unet"))
    name = write_variant(plans, "3d_fullres", Wishes(epochs=3, batch_size=4))
    copy = json.loads((dataset / f"{name}.json").read_text())
    assert (name, copy["plans_name"]) == (f"{plans['plans_name']}_3ep_batch4",) * 2
    own, other = (p["configurations"]["3d_fullres"] for p in (copy, plans))
    assert own["finetune"] == {**other["finetune"], "num_epochs": 3}
    assert own == {**other, "finetune": own["finetune"], "batch_size": 4}
    assert write_variant(plans, "3d_fullres", Wishes(epochs=3, batch_size=4)) == name
    assert "using the plans" in capsys.readouterr().out
