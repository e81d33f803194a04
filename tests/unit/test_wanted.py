"""The filter of a run is looked at before anything runs, and spares the preprocessing of what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from nnunet_ssl.cli.import_corpus import main as import_main
from nnunet_ssl.cli.pretrain import main as pretrain_main
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.planners.fingerprint import SSLFingerprintExtractor
from nnunet_ssl.planners.wanted import wanted_cases


@pytest.fixture
def folders(nnunet_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Data set 1 with a table, T1w and T2w in turn; data set 2 with none."""
    initialise = SSLFingerprintExtractor.__init__

    def draw_fewer(self: SSLFingerprintExtractor, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e5  # nnU-Net draws 10**8 however few images there are

    monkeypatch.setattr(SSLFingerprintExtractor, "__init__", draw_fewer)
    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    rows = ["path,subject,modality,age"]
    for n in range(6):
        voxels = np.random.default_rng(n).normal(100, 10, (16, 18, 20)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"i{n}.nii.gz")
        rows.append(f"i{n}.nii.gz,s{n},{'T1w' if n % 2 else 'T2w'},{30 + n}")
    (tmp_path / "scans.csv").write_text("\n".join(rows) + "\n")
    import_main(["-i", str(tmp_path / "scans.csv"), "-d", "1", "-n", "Table", "--channel-name", "MR"])
    plain = Path(nnunet_folders["nnUNet_raw"]) / "Dataset002_Plain"
    (plain / "imagesTr").mkdir(parents=True)
    (plain / "imagesTr" / "a_0000.nii.gz").write_bytes((tmp_path / "i0.nii.gz").read_bytes())
    (plain / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}))
    return nnunet_folders


def test_which_cases_are_wanted(folders: dict[str, str]) -> None:
    table, plain = "Dataset001_Table", "Dataset002_Plain"
    assert wanted_cases([table], None) == {}
    assert wanted_cases([table], "modality == 'T1w' and age > 32") == {table: {"s3_i3", "s5_i5"}}
    assert wanted_cases([table, plain], "modality == 'T1w'")[table] == {"s1_i1", "s3_i3", "s5_i5"}
    assert plain not in wanted_cases([table, plain], "modality == 'T1w'")
    assert wanted_cases([plain], "site == 3") == {}, "the run knows more of it"
    assert wanted_cases([table], "source == 'Dataset001_Table'") == {}, "a column that the run adds"


@pytest.mark.parametrize(
    "expression", ["modality =", "modality == T1w", "sice >= 3", "__import__('os')", "modality == 'PET'"]
)
def test_a_wrong_filter_is_found_before_anything_runs(
    folders: dict[str, str], expression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CorpusError):
        wanted_cases(["Dataset001_Table"], expression)
    with pytest.raises(SystemExit):
        pretrain_main(["1", "--backbone", "resenc_tiny", "--filter", expression, "-device", "cpu", "--preprocess-only"])
    assert "nnUNetv2_pretrain: " in capsys.readouterr().err
    left = [f for f in Path(folders["nnUNet_preprocessed"]).rglob("*") if f.is_file()]
    assert left == []


def test_syntax_is_looked_at_without_a_table(folders: dict[str, str]) -> None:
    with pytest.raises(CorpusError, match="cannot be read"):
        wanted_cases(["Dataset002_Plain"], "modality ==")


@pytest.mark.slow
def test_what_the_filter_leaves_out_is_not_preprocessed(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = ["1", "--backbone", "resenc_tiny", "-device", "cpu", "--preprocess-only", "-np", "1"]
    data = Path(folders["nnUNet_preprocessed"]) / "Dataset001_Table" / "nnUNetSSLResEncTinyPlans_3d_fullres"
    pretrain_main([*prepare, "--filter", "modality == 'T1w'"])
    assert {f.stem for f in data.glob("*.pkl")} == {"s1_i1", "s3_i3", "s5_i5"}
    assert "3 cases that the filter leaves out are not preprocessed" in capsys.readouterr().out
    pretrain_main([*prepare, "--filter", "modality == 'T1w'"])
    assert "3 preprocessed images are there" in capsys.readouterr().out
    pretrain_main([*prepare, "--filter", "age < 31"])
    assert len(list(data.glob("*.pkl"))) == 4, "what was there stays"
    pretrain_main(prepare)
    assert len(list(data.glob("*.pkl"))) == 6
