"""From raw images to training data: equal to nnU-Net's own where there are labels, unstoppable where files are bad."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ssl.cli.import_corpus import main as import_main
from nnunet_ssl.corpus.left_out import FILE
from nnunet_ssl.corpus.parallel import work_through
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.participants import Participant
from nnunet_ssl.planners.fingerprint import SSLFingerprintExtractor
from nnunet_ssl.planners.prepare import prepare_corpus, resolve_datasets
from nnunet_ssl.planners.preprocessing.foreground import AIR, LOCATIONS, SHARE
from nnunet_ssl.planners.preprocessor import SSLPreprocessor
from nnunet_ssl.planners.ssl_planner import SSLPlannerPrimusTiny, SSLPlannerResEncTiny

PLANS, DATA = "nnUNetSSLResEncTinyPlans", "nnUNetSSLResEncTinyPlans_3d_fullres"
MakeDataset = Callable[..., Path]


@pytest.fixture
def raw(nnunet_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnUNet_raw; all three variables are set in this process."""
    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    # nnU-Net draws 10**8 intensities however few images there are
    initialise = SSLFingerprintExtractor.__init__

    def draw_fewer(self: SSLFingerprintExtractor, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e5

    monkeypatch.setattr(SSLFingerprintExtractor, "__init__", draw_fewer)
    return Path(nnunet_folders["nnUNet_raw"])


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own classes work in threads, which start at once."""
    context = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(fingerprint_extractor, "multiprocessing", context)
    monkeypatch.setattr(default_preprocessor, "multiprocessing", context)


def preprocessed(raw: Path, dataset: Path) -> Path:
    return raw.parent / "nnUNet_preprocessed" / dataset.name


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    image = sitk.GetImageFromArray(array)
    if array.ndim == 3:
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def image_only(raw: Path, number: int, images: dict[str, np.ndarray], channel: str = "MR", **kwargs: Any) -> Path:
    folder = raw / f"Dataset{number:03d}_Images"
    (folder / "imagesTr").mkdir(parents=True)
    for case, array in images.items():
        write(folder / "imagesTr" / f"{case}_0000.nii.gz", array, **kwargs)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": channel}}))
    return folder


def load(folder: Path, case: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
    return data[:], seg[:], properties


def left_out(folder: Path) -> dict[str, str]:
    return {case: entry["reason"] for case, entry in json.loads((folder / FILE).read_text()).items()}


def snapshot(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.is_file()}


def test_labelled_data_give_nnunets_own_numbers(raw: Path, tiny_dataset: MakeDataset, threads: None) -> None:
    dataset = tiny_dataset(raw, 901, num_cases=3, channels=2)
    write(dataset / "labelsTr" / "tiny_02.nii.gz", np.zeros((20, 24, 28), np.uint8))  # a case without foreground
    folder = preprocessed(raw, dataset)
    stock = DatasetFingerprintExtractor(dataset.name, 1)
    stock.num_foreground_voxels_for_intensitystats = 1e5
    expected = json.loads(json.dumps(stock.run(), default=lambda x: x.item()))
    assert SSLFingerprintExtractor(dataset.name, 0).run(overwrite_existing=True) == expected
    assert not (folder / FILE).exists()

    SSLPlannerResEncTiny(dataset.name).plan_experiment()
    SSLPreprocessor(verbose=False).run(dataset.name, "3d_fullres", PLANS, num_processes=0)
    ours = {case: load(folder / DATA, case) for case in ("tiny_00", "tiny_01", "tiny_02")}
    DefaultPreprocessor(verbose=False).run(dataset.name, "3d_fullres", PLANS, num_processes=1)
    for case, (data, seg, properties) in ours.items():
        stock_data, stock_seg, stock_properties = load(folder / DATA, case)
        np.testing.assert_array_equal(data, stock_data)
        np.testing.assert_array_equal(seg, stock_seg)
        assert properties.keys() == {*stock_properties, LOCATIONS, SHARE, AIR}
        for key, value in properties["class_locations"].items():
            np.testing.assert_array_equal(value, stock_properties["class_locations"][key])


def heap_of_bad_files(raw: Path) -> tuple[Path, dict[str, str]]:
    """A dataset of three good images and one of every kind of bad one, with what its reason must say."""
    images = {f"good{i}": noise(i, 18, 20, 22) for i in range(3)}
    images["zeros"], images["constant"] = np.zeros((16, 16, 16), np.float32), np.full((16, 16, 16), 7, np.float32)
    images["nan"] = np.full((16, 16, 16), np.nan, np.float32)
    images["one_voxel"], images["slice"] = noise(10, 1, 1, 1), noise(11, 1, 40, 40)
    images["speck"] = np.zeros((16, 16, 16), np.float32)
    images["speck"][8, 8, 8] = 1
    dataset = image_only(raw, 902, images)
    target = dataset / "imagesTr"
    good = (target / "good0_0000.nii.gz").read_bytes()
    (target / "a_truncated_0000.nii.gz").write_bytes(good[: len(good) // 2])
    (target / "a_text_0000.nii.gz").write_text("This is not an image.")
    (target / "a_void_0000.nii.gz").touch()
    series = sitk.JoinSeries([sitk.GetImageFromArray(noise(i, 16, 16, 16)) for i in range(4)])
    sitk.WriteImage(series, str(target / "series_0000.nii.gz"))
    return dataset, {
        "a_truncated": "truncated",
        "a_text": "not a gzip file",
        "a_void": "",
        "zeros": "empty",
        "constant": "constant: every voxel is 7",
        "nan": "or NaN",
        "one_voxel": "too small|single slice",
        "slice": "a single slice",
        "speck": "almost empty",
        "series": "4-D: 4 volumes",
    }


def check_reasons(found: dict[str, str], expected: dict[str, str]) -> None:
    assert found.keys() == expected.keys()
    for case, words in expected.items():
        assert any(word in found[case] for word in words.split("|")), f"{case}: {found[case]}"


def test_bad_files_are_left_out_and_the_good_ones_survive(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, expected = heap_of_bad_files(raw)
    folder = preprocessed(raw, dataset)
    fingerprint = SSLFingerprintExtractor(902, 0).run()
    assert fingerprint["shapes_after_crop"] == [[18, 20, 22]] * 3
    check_reasons(left_out(folder), expected)
    assert "Left out 10 of 13 cases" in capsys.readouterr().out

    (folder / FILE).unlink()
    plans = SSLPlannerResEncTiny(902).plan_experiment()
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [24, 24, 24]
    SSLPreprocessor(verbose=False).run(902, "3d_fullres", PLANS, num_processes=0)
    assert set(nnUNetDatasetBlosc2.get_identifiers(str(folder / DATA))) == {"good0", "good1", "good2"}
    check_reasons(left_out(folder), expected)
    data, seg, properties = load(folder / DATA, "good1")
    assert data.shape == (1, 18, 20, 22)
    assert abs(data.mean()) < 1e-4
    assert set(np.unique(seg)) == {0}
    assert properties["class_locations"] == {}

    before = snapshot(folder / DATA)
    _, name = prepare_corpus([902], "SSLPlannerResEncTiny", num_processes=0)  # everything is there
    assert name == PLANS
    assert snapshot(folder / DATA) == before
    write(dataset / "imagesTr" / "nan_0000.nii.gz", noise(9, 16, 16, 16))  # repaired
    os.utime(dataset / "imagesTr" / "nan_0000.nii.gz", (2e9, 2e9))
    prepare_corpus([902], "SSLPlannerResEncTiny", num_processes=0)
    assert (folder / DATA / "nan.pkl").exists()
    assert "nan" not in left_out(folder)


def test_only_bad_files_is_an_error(raw: Path) -> None:
    dataset = image_only(raw, 903, {"a": np.zeros((16, 16, 16), np.float32)})
    with pytest.raises(CorpusError, match=r"None of the 1 images.*\n.*a: empty"):
        SSLFingerprintExtractor(903, 0).run()
    write(dataset / "imagesTr" / "a_0000.nii.gz", noise(0, 16, 16, 16))
    SSLFingerprintExtractor(903, 0).run()
    SSLPlannerResEncTiny(903).plan_experiment()
    write(dataset / "imagesTr" / "a_0000.nii.gz", np.zeros((16, 16, 16), np.float32))
    with pytest.raises(CorpusError, match="None of the 1 images"):
        SSLPreprocessor(verbose=False).run(903, "3d_fullres", PLANS, num_processes=0)


def test_without_labels_the_intensities_are_the_patients_not_the_airs(raw: Path) -> None:
    image = np.full((20, 20, 20), -1000, np.float32)
    image[6:14, 6:14, 6:14] = noise(0, 8, 8, 8) - 60  # about 40 HU in a sea of air
    image_only(raw, 904, {"a": image}, channel="CT")
    statistics = SSLFingerprintExtractor(904, 0).run()["foreground_intensity_properties_per_channel"]["0"]
    assert statistics["mean"] == pytest.approx(40, abs=5)
    assert statistics["percentile_00_5"] > -100


def test_background_outside_the_head_is_marked(raw: Path) -> None:
    image = np.zeros((24, 24, 24), np.float32)
    axes = np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij")
    image[sum(a**2 for a in axes) < 0.8] = 1
    image *= noise(0, 24, 24, 24)
    dataset = image_only(raw, 905, {"a": image})
    prepare_corpus([905], SSLPlannerResEncTiny, num_processes=0)
    _, seg, _ = load(preprocessed(raw, dataset) / DATA, "a")
    assert set(np.unique(seg)) == {-1, 0}


def test_preprocessing_continues_and_notices_other_settings(
    raw: Path, tiny_dataset: MakeDataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tiny_dataset(raw, 906, num_cases=3, num_labelled=1)
    folder = preprocessed(raw, dataset)
    SSLFingerprintExtractor(906, 0).run()
    SSLPlannerResEncTiny(906).plan_experiment()
    save = nnUNetDatasetBlosc2.save_case

    def full_disk(data: Any, seg: Any, properties: Any, path: str, **kwargs: Any) -> None:
        if "tiny_01" in path:
            raise OSError(28, "No space left on device")
        save(data, seg, properties, path, **kwargs)

    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", staticmethod(full_disk))
    with pytest.raises(OSError, match="No space left"):  # no fault of the image: must not count as a bad one
        SSLPreprocessor(verbose=False).run(906, "3d_fullres", PLANS, num_processes=0)
    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", staticmethod(save))
    assert not (folder / FILE).exists()
    first = snapshot(folder / DATA)
    assert set(first) == {"tiny_00.b2nd", "tiny_00_seg.b2nd", "tiny_00.pkl"}
    (folder / DATA / "tiny_02.b2nd").touch()  # killed while moving its files

    SSLPreprocessor(verbose=False).run(906, "3d_fullres", PLANS, num_processes=0)
    after = snapshot(folder / DATA)
    assert len(after) == 9
    assert {name: after[name] for name in first} == first
    assert load(folder / DATA, "tiny_02")[0].shape == (1, 20, 24, 28)
    assert load_pickle(str(folder / DATA / "tiny_00.pkl"))["class_locations"].keys() == {1}
    assert load_pickle(str(folder / DATA / "tiny_01.pkl"))["class_locations"] == {}

    (dataset / "imagesTr" / "tiny_02_0000.nii.gz").unlink()
    SSLPlannerResEncTiny(906, overwrite_target_spacing=[2.0, 2.0, 2.0]).plan_experiment()
    capsys.readouterr()
    SSLPreprocessor(verbose=False).run(906, "3d_fullres", PLANS, num_processes=0)
    assert "are made anew: spacing changed" in capsys.readouterr().out
    assert len(snapshot(folder / DATA)) == 6
    assert load(folder / DATA, "tiny_00")[0].shape == (1, 10, 12, 14)

    (dataset / "imagesTr" / "tiny_01_0000.nii.gz").unlink()
    SSLPreprocessor(verbose=False).run(906, "3d_fullres", PLANS, num_processes=0)
    assert "no longer in Dataset906_Tiny" in capsys.readouterr().out
    assert len(snapshot(folder / DATA)) == 3


def test_prediction_is_not_checked(raw: Path, tiny_dataset: MakeDataset) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    tiny_dataset(raw, 907, num_cases=1)
    plans, _ = prepare_corpus([907], SSLPlannerResEncTiny, num_processes=0)
    manager = PlansManager(plans)
    data, _, _ = SSLPreprocessor(verbose=False).run_case_npy(
        np.full((1, 16, 16, 16), 5.0),
        None,
        {"spacing": [1, 1, 1]},
        manager,
        manager.get_configuration("3d_fullres"),
        {},
    )
    assert data.shape == (1, 16, 16, 16)


def test_several_datasets_form_one_corpus(raw: Path, tiny_dataset: MakeDataset) -> None:
    labelled = tiny_dataset(raw, 908, num_cases=2)
    scans = image_only(raw, 909, {"a": noise(1, 30, 30, 30), "b": noise(2, 30, 30, 30)}, channel="CT")
    prepare_corpus([908], SSLPlannerPrimusTiny, num_processes=0)
    alone = (preprocessed(raw, labelled) / "nnUNetSSLPrimusTinyPlans.json").read_bytes()

    plans, name = prepare_corpus(["908", scans.name], SSLPlannerPrimusTiny, num_processes=0)
    assert name == "nnUNetSSLPrimusTinyPlans_with_908_909"
    assert (preprocessed(raw, labelled) / "nnUNetSSLPrimusTinyPlans.json").read_bytes() == alone
    other = json.loads((preprocessed(raw, scans) / f"{name}.json").read_text())
    mine, theirs = plans["configurations"]["3d_fullres"], other["configurations"]["3d_fullres"]
    assert (plans["dataset_name"], other["dataset_name"]) == (labelled.name, scans.name)
    assert mine["ssl"]["datasets"] == [scans.name]
    for key in ("data_identifier", "patch_size", "spacing", "architecture"):
        assert mine[key] == theirs[key]
    assert mine["patch_size"] == [32, 32, 32]  # medians over both: 25, 27 and 29
    assert mine["normalization_schemes"] == ["ZScoreNormalization"]
    assert theirs["normalization_schemes"] == ["CTNormalization"]
    assert theirs["ssl"]["batch_size"] == 8
    intensities = "foreground_intensity_properties_per_channel"
    assert plans[intensities] != other[intensities]
    for dataset, cases in ((labelled, {"tiny_00", "tiny_01"}), (scans, {"a", "b"})):
        folder = preprocessed(raw, dataset) / mine["data_identifier"]
        assert set(nnUNetDatasetBlosc2.get_identifiers(str(folder))) == cases

    assert prepare_corpus([909, 908], SSLPlannerPrimusTiny, num_processes=0)[1] == name
    again, name = prepare_corpus([908, 909], plans_name="nnUNetSSLPrimusTinyPlans", num_processes=0)
    assert again == plans


def test_existing_plans_can_be_shared(raw: Path, tiny_dataset: MakeDataset) -> None:
    labelled = tiny_dataset(raw, 910, num_cases=2, channels=2)
    scans = image_only(raw, 911, {"a": noise(1, 30, 30, 30)}, channel="CT")
    plans, _ = prepare_corpus([910], SSLPlannerResEncTiny, spacing="median", num_processes=0)
    # the same as if nnU-Net had planned it
    plans.update(plans_name="nnUNetPlans", experiment_planner_used="ExperimentPlanner")
    del plans["configurations"]["3d_fullres"]["ssl"]
    plans["configurations"]["3d_fullres"]["preprocessor_name"] = "DefaultPreprocessor"
    (preprocessed(raw, labelled) / "nnUNetPlans.json").write_text(json.dumps(plans))

    joint, name = prepare_corpus([910, 911], plans_name="nnUNetPlans", num_processes=0)
    assert name == "nnUNetPlans_with_910_911"
    other = json.loads((preprocessed(raw, scans) / f"{name}.json").read_text())["configurations"]["3d_fullres"]
    mine = joint["configurations"]["3d_fullres"]
    assert mine["architecture"] == plans["configurations"]["3d_fullres"]["architecture"] == other["architecture"]
    assert mine["ssl"] == {"datasets": [scans.name]}
    assert mine["normalization_schemes"] == ["ZScoreNormalization"] * 2
    assert other["normalization_schemes"] == ["CTNormalization"]
    assert (preprocessed(raw, scans) / other["data_identifier"] / "a.pkl").exists()


def test_images_added_later_are_preprocessed(raw: Path, tmp_path: Path) -> None:
    for case in "ab":
        write(tmp_path / f"{case}.nii.gz", noise(ord(case), 16, 16, 16))
    dataset = raw / "Dataset918_Growing"
    dataset.mkdir()
    for cases in ("a", "ab"):
        entries = {case: {"images": [str(tmp_path / f"{case}.nii.gz")]} for case in cases}
        (dataset / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MR"}, "dataset": entries}))
        prepare_corpus([918], SSLPlannerResEncTiny, num_processes=0)
        found = nnUNetDatasetBlosc2.get_identifiers(str(preprocessed(raw, dataset) / DATA))
        assert set(found) == set(cases)


def test_preprocessed_data_are_enough(raw: Path, tiny_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = tiny_dataset(raw, 912, num_cases=2)
    plans, name = prepare_corpus([912], SSLPlannerResEncTiny, num_processes=0)
    shutil.rmtree(dataset)
    assert prepare_corpus([912], SSLPlannerResEncTiny, num_processes=0) == (plans, name)
    assert "the raw images are not there; using the 2 preprocessed ones" in capsys.readouterr().out
    with pytest.raises(CorpusError, match=r"There is no .*Dataset912_Tiny"):
        prepare_corpus([912], SSLPlannerPrimusTiny, num_processes=0)


def test_errors_list_what_there_is(raw: Path, tiny_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny_dataset(raw, 913, num_cases=2)
    assert resolve_datasets(["913"]) == resolve_datasets([913]) == resolve_datasets([dataset.name]) == [dataset.name]
    with pytest.raises(CorpusError, match=r"no dataset 7\.(.|\n)*Dataset913_Tiny"):
        resolve_datasets([7])
    with pytest.raises(CorpusError, match="named twice"):
        resolve_datasets([913, dataset.name])
    with pytest.raises(CorpusError, match=r"no plans nnUNetPlans\. It has: none"):
        prepare_corpus([913], plans_name="nnUNetPlans", num_processes=0)
    with pytest.raises(CorpusError, match="3d_fullres only"):
        prepare_corpus([913], SSLPlannerResEncTiny, configuration="2d", num_processes=0)
    with pytest.raises(CorpusError, match="not a planner for pre-training"):
        prepare_corpus([913], "ExperimentPlanner", num_processes=0)
    prepare_corpus([913], SSLPlannerResEncTiny, num_processes=0)
    with pytest.raises(CorpusError, match=r"no configuration 3d_lowres\. It has: 3d_fullres"):
        prepare_corpus([913], plans_name=PLANS, configuration="3d_lowres", num_processes=0)
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(CorpusError, match="export nnUNet_raw="):
        resolve_datasets([7])
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(CorpusError, match="export nnUNet_preprocessed="):
        resolve_datasets([913])


def test_plans_of_nnunet_need_labels(raw: Path, tiny_dataset: MakeDataset) -> None:
    dataset = tiny_dataset(raw, 914, num_cases=2, num_labelled=1)
    plans, _ = prepare_corpus([914], SSLPlannerResEncTiny, num_processes=0)
    assert [p.name for p in (preprocessed(raw, dataset) / "gt_segmentations").iterdir()] == ["tiny_00.nii.gz"]
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(preprocessor_name="DefaultPreprocessor", data_identifier="nnUNetPlans_3d_fullres")
    (preprocessed(raw, dataset) / "nnUNetPlans.json").write_text(json.dumps({**plans, "plans_name": "nnUNetPlans"}))
    with pytest.raises(CorpusError, match="1 of 2 images of Dataset914_Tiny have none"):
        prepare_corpus([914], plans_name="nnUNetPlans", num_processes=0)


def test_a_killed_worker_is_a_clear_error() -> None:
    with pytest.raises(CorpusError, match=r"killed(.|\n)*-np 1"):
        list(work_through(os._exit, {"a": (9,), "b": (9,)}, 2, "killed as by the system", show_progress=False))


class KilledByBadImages(SSLPreprocessor):
    """As if a library crashed, or the system took the process for want of memory, at certain images."""

    def run_case(self, image_files: list[str], *args: Any, **kwargs: Any) -> Any:
        if "killer" in image_files[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run_case(image_files, *args, **kwargs)


def test_an_image_that_kills_its_process_is_left_out_and_the_others_survive(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = image_only(raw, 919, {n: noise(i, 16, 16, 16) for i, n in enumerate(["a", "b", "killer", "z"])})
    SSLFingerprintExtractor(919, 0).run()
    SSLPlannerResEncTiny(919).plan_experiment()
    KilledByBadImages(verbose=False).run(919, "3d_fullres", PLANS, num_processes=2)
    folder = preprocessed(raw, dataset)
    assert set(nnUNetDatasetBlosc2.get_identifiers(str(folder / DATA))) == {"a", "b", "z"}
    assert "with nothing else running (SIGKILL, most likely for want of memory)" in left_out(folder)["killer"]
    assert "In short: 1 x it killed the process" in capsys.readouterr().out
    KilledByBadImages(verbose=False).run(919, "3d_fullres", PLANS, num_processes=0)  # not tried again, else we die here
    kept = {p.name for p in (folder / DATA / "preprocessing").iterdir() if p.is_file()}
    assert kept == {"settings.json", "made_from.jsonl"}
    assert not any(p.is_file() for p in (folder / DATA / "preprocessing").glob("*/*"))


def test_several_runs_share_the_cases(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {f"c{i:02d}": noise(i, 16, 16, 16) for i in range(12)} | {"zeros": np.zeros((16, 16, 16), np.float32)}
    dataset = image_only(raw, 920, images)
    SSLFingerprintExtractor(920, 0).run()
    SSLPlannerResEncTiny(920).plan_experiment()
    folder = preprocessed(raw, dataset)
    (folder / FILE).unlink()
    done: list[str] = []
    case = SSLPreprocessor.run_case

    def noted(self: SSLPreprocessor, files: list[str], *args: Any, **kwargs: Any) -> Any:
        done.append(Path(files[0]).name)
        return case(self, files, *args, **kwargs)

    monkeypatch.setattr(SSLPreprocessor, "run_case", noted)
    with ThreadPool(3) as machines:  # each with a participant of its own
        machines.map(lambda _: SSLPreprocessor(False).run(920, "3d_fullres", PLANS, num_processes=0), range(3))
    assert len(done) == len(set(done)) == 13
    assert set(nnUNetDatasetBlosc2.get_identifiers(str(folder / DATA))) == images.keys() - {"zeros"}
    assert left_out(folder).keys() == {"zeros"}
    assert not list(folder.glob("**/*.lock"))


def test_another_run_with_other_settings_is_not_disturbed(raw: Path) -> None:
    dataset = image_only(raw, 921, {"a": noise(0, 16, 16, 16)})
    prepare_corpus([921], SSLPlannerResEncTiny, num_processes=0)
    folder = preprocessed(raw, dataset) / DATA
    SSLPlannerResEncTiny(921, overwrite_target_spacing=[2.0, 2.0, 2.0]).plan_experiment()
    before = snapshot(folder)
    with (
        Participant(str(folder / "preprocessing")),
        pytest.raises(CorpusError, match=r"preprocessing into .* with other settings \(spacing\)"),
    ):
        SSLPreprocessor(verbose=False).run(921, "3d_fullres", PLANS, num_processes=0)
    assert snapshot(folder) == before


def test_nnunets_preprocessed_data_are_used_as_they_are(raw: Path, tiny_dataset: MakeDataset, threads: None) -> None:
    dataset = tiny_dataset(raw, 922, num_cases=2)
    plans, _ = prepare_corpus([922], SSLPlannerResEncTiny, num_processes=0)
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(preprocessor_name="DefaultPreprocessor", data_identifier="nnUNetPlans_3d_fullres")
    folder = preprocessed(raw, dataset)
    (folder / "nnUNetPlans.json").write_text(json.dumps({**plans, "plans_name": "nnUNetPlans"}))
    DefaultPreprocessor(verbose=False).run(922, "3d_fullres", "nnUNetPlans", num_processes=1)
    before = snapshot(folder / "nnUNetPlans_3d_fullres")
    assert prepare_corpus([922], plans_name="nnUNetPlans", num_processes=0)[1] == "nnUNetPlans"
    assert snapshot(folder / "nnUNetPlans_3d_fullres") == before
    assert len(before) == 6


def test_mixed_corpus_each_image_by_its_own_kind_in_half_precision(raw: Path, tmp_path: Path) -> None:
    axes = np.meshgrid(*[np.linspace(-1, 1, 20)] * 3, indexing="ij")
    ball = sum(a**2 for a in axes) < 0.6
    images = {
        "sub-1_T1w": np.where(ball, noise(0, 20, 20, 20) * 7, np.abs(noise(1, 20, 20, 20) - 100) * 0.1),
        "sub-2_CT": np.where(ball, 40.0, -1000.0) + noise(2, 20, 20, 20) - 100,
    }
    for name, image in images.items():
        write(tmp_path / f"{name}.nii.gz", image.astype(np.float32))
    write(tmp_path / "mask.nii.gz", (ball & (axes[0] > 0)).astype(np.uint8))
    table = "path,subject,modality,anatomy_mask\n"
    for name in images:
        mask = "mask.nii.gz" if "T1w" in name else ""
        table += f"{tmp_path}/{name}.nii.gz,{name[:5]},{name[6:]},{mask and tmp_path / mask}\n"
    (tmp_path / "corpus.csv").write_text(table)
    import_main(["-i", str(tmp_path / "corpus.csv"), "-d", "923", "-n", "Mixed", "-np", "1"])
    plans, name = prepare_corpus(
        [923], SSLPlannerResEncTiny, normalization="per_image", storage="float16", num_processes=1
    )
    assert name == f"{PLANS}_perimage_float16"
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["SSLPerImageNormalization"]
    folder = raw.parent / "nnUNet_preprocessed" / "Dataset923_Mixed" / configuration["data_identifier"]
    cases = {c[:5]: load(folder, c) for c in nnUNetDatasetBlosc2.get_identifiers(str(folder))}
    mr, mr_seg, mr_properties = cases["sub-1"]
    ct, _, ct_properties = cases["sub-2"]
    assert (mr.dtype, ct.dtype) == (np.float16, np.float16)
    inside = mr_seg == 1
    assert abs(mr[inside].astype(float).mean()) < 1e-2  # z-score in the mask
    assert mr[inside].astype(float).std() == pytest.approx(1, abs=1e-2)
    assert ct.astype(float).min() == -2  # fixed window
    assert np.median(ct[0][ball].astype(float)) == pytest.approx(0.08, abs=0.02)
    assert (mr_properties["modality"], ct_properties["modality"]) == ("T1w", "CT")
    for properties, body in ((mr_properties, inside[0]), (ct_properties, ball)):
        assert body[tuple(properties[LOCATIONS][:, 1:].T)].mean() > 0.99
        assert properties[SHARE] == pytest.approx(body.mean(), abs=0.01)
    assert list(mr_properties["class_locations"]) == [1]
    assert mr_properties[AIR][0] < 0


def test_real_scans(raw: Path, shared_data: Path) -> None:
    head, ct = shared_data / "brain_mri", shared_data / "ct"
    brains = raw / "Dataset915_Head"
    brains.mkdir()
    sequences = {p.name.removesuffix(".nii.gz"): {"images": [str(p)]} for p in sorted(head.glob("*.nii.gz"))[:2]}
    (brains / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MR"}, "dataset": sequences}))
    scans = raw / "Dataset916_CT"
    scans.mkdir()
    (scans / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "dataset": {"ct": {"images": [str(ct / "ct_small.nii.gz")]}}})
    )
    plans, name = prepare_corpus([915, 916], SSLPlannerPrimusTiny, spacing="noresample", num_processes=0)
    assert name == "nnUNetSSLPrimusTinyPlans_noresample_with_915_916"
    folder = preprocessed(raw, brains) / plans["configurations"]["3d_fullres"]["data_identifier"]
    data, _, _ = load(folder, next(iter(sequences)))
    assert data.shape[1] <= 22  # the slices, first after transposition, are as they were
    assert json.loads((preprocessed(raw, brains) / "dataset.json").read_text())["dataset"] == sequences


def test_nnunets_own_command(nnunet_folders: dict[str, str], run_command: Callable[..., Any]) -> None:
    """Images without labels through a stock command, in a fresh process with spawned workers."""
    dataset, expected = heap_of_bad_files(Path(nnunet_folders["nnUNet_raw"]))
    arguments = "-d 902 -fpe SSLFingerprintExtractor -npfp 1 -pl SSLPlannerResEncTiny -c 3d_fullres -np 2"
    run_command(["nnUNetv2_plan_and_preprocess", *arguments.split()], nnunet_folders)
    folder = Path(nnunet_folders["nnUNet_preprocessed"]) / dataset.name
    assert set(nnUNetDatasetBlosc2.get_identifiers(str(folder / DATA))) == {"good0", "good1", "good2"}
    check_reasons(left_out(folder), expected)
    assert list((folder / "gt_segmentations").iterdir()) == []
