"""Patch sizes, presets and plans without any image: everything comes from a fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.integration.architecture import spec_of
from nnunet_ssl.methods import method_names
from nnunet_ssl.methods.mae import MAEConfig
from nnunet_ssl.planners.patch_size import choose_patch_size, padding_warning, require_patch_size
from nnunet_ssl.planners.preprocessing.normalization import raw_channels
from nnunet_ssl.planners.ssl_planner import (
    SSLPlanner,
    SSLPlannerPrimusM,
    SSLPlannerPrimusTiny,
    SSLPlannerPrimusX,
    SSLPlannerResEncL,
    SSLPlannerResEncTiny,
)
from nnunet_ssl.settings.blocks import FinetuneSettings, PretrainBlock, read_config

PLANNERS = [SSLPlannerResEncL, SSLPlannerPrimusM, SSLPlannerResEncTiny, SSLPlannerPrimusTiny]
NAME = "Dataset700_Planned"
INTENSITIES = {"mean": 1, "median": 1, "std": 1, "min": 0, "max": 2, "percentile_99_5": 2, "percentile_00_5": 0}


@pytest.fixture
def dataset(nnunet_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image-only dataset with a fingerprint of anisotropic images; the image files are empty."""
    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    raw = Path(nnunet_folders["nnUNet_raw"]) / NAME
    (raw / "imagesTr").mkdir(parents=True)
    for case in "abc":
        (raw / "imagesTr" / f"{case}_0000.nii.gz").touch()
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}}))
    folder = Path(nnunet_folders["nnUNet_preprocessed"]) / NAME
    folder.mkdir()
    write_fingerprint(folder, [[40, 50, 20]] * 3, [[1.0, 1.0, 4.0]] * 3)
    return folder


def write_fingerprint(folder: Path, shapes: list[list[int]], spacings: list[list[float]]) -> None:
    content = {
        "spacings": spacings,
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
        "median_relative_size_after_cropping": 1.0,
    }
    (folder / "dataset_fingerprint.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edge", "shape", "stride", "expected"),
    [
        (160, (300, 300, 300), 32, [160, 160, 160]),
        (160, (100, 140, 33), 32, [128, 160, 64]),
        (64, (39, 50, 36), 8, [40, 56, 40]),
        (64, (40.5, 48, 64), 8, [48, 48, 64]),
        (160, (20, 30, 20), 32, [32, 64, 32]),
    ],
)
def test_choose_patch_size(edge: int, shape: tuple[float, ...], stride: int, expected: list[int]) -> None:
    assert choose_patch_size(edge, shape, stride) == expected


def test_patch_sizes_that_do_not_fit() -> None:
    assert require_patch_size((64, 96, 64), 32) == [64, 96, 64]
    with pytest.raises(CorpusError, match="64 x 96 x 64 and 96 x 96 x 96"):
        require_patch_size((70, 96, 65), 32)
    with pytest.raises(CorpusError, match="three numbers"):
        require_patch_size((64, 64), 32)
    with pytest.raises(CorpusError, match="at least 64"):
        require_patch_size((32, 32, 32), 32)
    assert padding_warning((64, 64, 64), [(40, 40, 40), (50, 60, 60)], 32) is None
    assert "padding" in str(padding_warning((96, 64, 64), [(40, 40, 40), (50, 60, 60)], 32))


@pytest.mark.parametrize("planner", PLANNERS)
def test_plans_are_what_nnunet_reads(planner: type[SSLPlanner], dataset: Path) -> None:
    plans = planner(NAME, preprocessor_name="DefaultPreprocessor").plan_experiment()
    stored = json.loads((dataset / f"{planner.default_plans_name}.json").read_text())
    assert stored == json.loads(json.dumps(plans))
    manager = PlansManager(stored)
    configuration = manager.get_configuration("3d_fullres")
    for source in (manager, configuration):
        skipped = {"experiment_planner_class", "preprocessor_class"}  # need an installed package: integration tests
        if "primus" in configuration.network_arch_class_name:
            skipped.add("pool_op_kernel_sizes")  # has none
        for name, attribute in vars(type(source)).items():
            if isinstance(attribute, property) and name not in skipped:
                getattr(source, name)
    assert configuration.preprocessor_name == "SSLPreprocessor"
    assert configuration.data_identifier == f"{planner.default_plans_name}_3d_fullres"
    assert configuration.normalization_schemes == ["CTNormalization"]
    assert configuration.spacing == [1, 1, 1]
    assert configuration.median_image_size_in_voxels == [40, 50, 80]
    assert configuration.batch_dice is False
    assert manager.image_reader_writer_class.__name__ == "SimpleITKIO"

    completed = json.loads((dataset / "dataset.json").read_text())
    assert completed["labels"] == {"background": 0}
    labels = manager.get_label_manager(completed)
    assert labels.num_segmentation_heads == 1
    assert labels.foreground_labels == []

    read = PretrainBlock.read(configuration.configuration, method_names(), "3d_fullres").of("mae", MAEConfig)[0]
    assert read.batch_size == (6 if planner is SSLPlannerResEncTiny else 8)
    assert configuration.batch_size == (2 if planner in PLANNERS[:2] else 4)
    read_config(FinetuneSettings, configuration.configuration["finetune"], "finetune")


@pytest.mark.parametrize("planner", PLANNERS)
def test_networks_are_built_from_the_plans_and_run(planner: type[SSLPlanner], dataset: Path) -> None:
    plans = json.loads(json.dumps(planner(NAME).plan_experiment()))
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    tiny = planner in PLANNERS[2:]
    with torch.device("cpu" if tiny else "meta"):
        network = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            1,
            2,
            allow_init=tiny,
        )
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    expected = {
        SSLPlannerResEncL: 102.35,
        SSLPlannerPrimusM: 143.6,
        SSLPlannerResEncTiny: 1.37,
        SSLPlannerPrimusTiny: 3.66,
    }
    assert millions == pytest.approx(expected[planner], rel=0.02)
    if tiny:
        size = configuration.patch_size
        with torch.no_grad():
            assert network(torch.zeros(1, 1, *size)).shape == (1, 2, *size)


def test_resenc_l_has_the_published_stages(dataset: Path) -> None:
    kwargs = SSLPlannerResEncL(NAME).plan_experiment()["configurations"]["3d_fullres"]["architecture"]
    assert kwargs["_kw_requires_import"] == ["conv_op", "norm_op", "dropout_op", "nonlin"]
    assert kwargs["arch_kwargs"]["features_per_stage"] == [32, 64, 128, 256, 320, 320]
    assert kwargs["arch_kwargs"]["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6]
    assert kwargs["arch_kwargs"]["strides"] == [[1, 1, 1]] + [[2, 2, 2]] * 5
    assert kwargs["arch_kwargs"]["n_conv_per_stage_decoder"] == [1] * 5


def test_the_vit_of_nnfoundation(dataset: Path) -> None:
    write_fingerprint(dataset, [[300, 300, 300]] * 3, [[1, 1, 1]] * 3)
    plans = json.loads(json.dumps(SSLPlannerPrimusX(NAME, spacing_style="noresample").plan_experiment()))
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [192, 192, 192]
    assert (configuration["ssl"]["batch_size"], configuration["ssl"]["mae"]["mask_ratio"]) == (96, 0.8)
    network = spec_of(configuration, "the plans").build_empty(1, 1, configuration["patch_size"])
    encoder = sum(p.numel() for n, p in network.named_parameters() if n.startswith(("eva.", "down_projection.")))
    assert encoder / 1e6 == pytest.approx(552, abs=1)  # 674 with nnssl's decoder of 8 blocks and its heads


def test_spacing_styles(dataset: Path) -> None:
    write_fingerprint(dataset, [[40, 50, 20], [40, 50, 20], [40, 50, 80]], [[1, 1, 4], [1, 1, 5], [1, 1, 1]])

    def plan(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        plans = SSLPlannerResEncTiny(NAME, **options).plan_experiment()
        return plans, plans["configurations"]["3d_fullres"]

    plans, one = plan()
    assert (one["spacing"], plans["transpose_forward"]) == ([1, 1, 1], [0, 1, 2])
    plans, median = plan(spacing_style="median")
    assert plans["plans_name"] == "nnUNetSSLResEncTinyPlans_median"
    assert (plans["transpose_forward"], plans["transpose_backward"]) == ([2, 0, 1], [1, 2, 0])
    assert median["spacing"] == [4, 1, 1]
    assert median["median_image_size_in_voxels"] == [20, 40, 50]
    assert median["patch_size"] == [24, 40, 56]
    plans, native = plan(spacing_style="noresample")
    assert native["spacing"] == [4, 1, 1]
    assert native["resampling_fn_data"] == no_resampling_hack.__name__
    assert native["resampling_fn_probabilities"] == no_resampling_hack.__name__
    _, given = plan(overwrite_target_spacing=[2.0, 1.0, 1.0])
    assert given["spacing"] == [2, 1, 1]
    assert given["patch_size"][0] == 24
    with pytest.raises(CorpusError, match="onemmiso, median, noresample"):
        plan(spacing_style="2mm")


def test_own_patch_size(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = SSLPlannerPrimusTiny(NAME, patch_size=(24, 24, 160)).plan_experiment()
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [24, 24, 160]
    assert configuration["architecture"]["arch_kwargs"]["input_shape"] == [24, 24, 160]
    assert "WARNING" in capsys.readouterr().out
    with pytest.raises(CorpusError, match="multiple of 8"):
        SSLPlannerPrimusTiny(NAME, patch_size=(20, 24, 24))


def test_plans_of_nnunet_are_never_overwritten(dataset: Path) -> None:
    for name in ("nnUNetPlans", "nnUNetResEncUNetLPlans", "nnUNetResEncUNetPlans"):
        with pytest.raises(CorpusError, match="belongs to another planner"):
            SSLPlannerResEncL(NAME, plans_name=name)
    (dataset / "mine.json").write_text(json.dumps({"experiment_planner_used": "ExperimentPlanner"}))
    with pytest.raises(CorpusError, match="belongs to another planner"):
        SSLPlannerResEncL(NAME, plans_name="mine")
    SSLPlannerResEncTiny(NAME, plans_name="ours").plan_experiment()
    SSLPlannerResEncTiny(NAME, plans_name="ours").plan_experiment()


def test_two_dimensional_images_are_nnunets_own(dataset: Path) -> None:
    write_fingerprint(dataset, [[1, 50, 20]] * 3, [[999, 1, 1]] * 3)
    with pytest.raises(CorpusError, match="2d configuration"):
        SSLPlannerResEncTiny(NAME).plan_experiment()


def test_a_missing_fingerprint_names_the_command(dataset: Path) -> None:
    (dataset / "dataset_fingerprint.json").unlink()
    with pytest.raises(CorpusError, match="nnUNetv2_extract_fingerprint -d 700 -fpe SSLFingerprintExtractor"):
        SSLPlannerResEncTiny(NAME)


def test_a_channel_left_as_it_is_is_warned_of_where_it_would_swamp_the_loss() -> None:
    def intensities(mean: float, std: float) -> dict[str, float]:
        return {"mean": mean, "std": std}

    plans = {"foreground_intensity_properties_per_channel": {"0": intensities(900, 300), "1": intensities(0.4, 0.3)}}
    names = {"0": "noNorm", "1": "noNorm"}
    (warning,) = raw_channels(plans, ["NoNormalization", "NoNormalization"], names)
    assert "channel 0 (noNorm)" in warning
    assert "deviation of 300" in warning
    assert "--normalization per_image" in warning
    assert raw_channels(plans, ["ZScoreNormalization", "NoNormalization"], names) == []
    assert raw_channels({}, ["NoNormalization"], names) == []
    plans["foreground_intensity_properties_per_channel"]["1"] = intensities(-1000, 0.5)
    assert len(raw_channels(plans, ["NoNormalization", "NoNormalization"], names)) == 2
