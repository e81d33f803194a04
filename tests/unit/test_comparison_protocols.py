"""The papers' protocols: what they say, which of a user's data sets are theirs, and their numbers on the page."""

from __future__ import annotations

import json
import re

import pytest
from made_comparison import make_comparison

from nnunet_ssl.comparison.protocols.protocol import NAMES, UNKNOWN, ProtocolDataset, load_protocol
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.report.comparison import write_report
from tests.unit.test_report_page import Reader


@pytest.mark.parametrize("name", NAMES)
def test_protocols_are_complete_and_say_what_is_unknown(name):
    from importlib.metadata import entry_points

    protocol = load_protocol(name)
    assert protocol.name == name
    assert protocol.paper.startswith("https://arxiv.org/abs/")
    trainers = {entry.name for entry in entry_points(group="nnunetv2.trainers")}
    for starts in protocol.trainers.values():
        assert set(starts) == {"fine-tuned", "from scratch"}
        assert set(starts.values()) <= trainers
    for entry in protocol.datasets:
        assert entry.part in ("development", "test", UNKNOWN)
        assert all((entry.modality, entry.task, entry.licence, entry.where, entry.split, entry.must_hold()))
    names = [entry.name for entry in protocol.datasets]
    assert len(set(names)) == len(names)
    for row in protocol.published:
        assert row["backbone"] in protocol.trainers
        assert row["epochs"] in protocol.epochs
        assert 0 < row["mean"] < 100
        assert set(row["by_dataset"]) <= set(names)
        assert row["trust"]


def test_published_rows_are_those_of_the_papers():
    """What the papers say in words: best method, and by how much."""
    openmind = {(row["backbone"], row["start"]): row["mean"] for row in load_protocol("openmind").published}
    assert openmind["ResEnc-L", "MAE"] - openmind["ResEnc-L", "scratch"] == pytest.approx(2.47)
    assert openmind["Primus-M", "MAE"] - openmind["Primus-M", "scratch"] == pytest.approx(6.80)
    spark = {row["start"]: row for row in load_protocol("spark3d").published}
    assert spark["Spark3D"]["mean"] - spark["scratch, nnU-Net's own plans"]["mean"] == pytest.approx(2.97)
    assert min(spark, key=lambda start: spark[start]["average_rank"]) == "Spark3D"


def test_an_unknown_protocol_names_those_there_are():
    with pytest.raises(
        SettingsError, match=r"no protocol 'openmnd'. Did you mean openmind\? Protocols: openmind, spark3d\."
    ):
        load_protocol("openmnd")


def test_a_users_data_sets_are_found_by_title_and_lacking_ones_listed():
    protocol = load_protocol("openmind")
    mine = ["Dataset027_ACDC", "Dataset220_kits_2023", "Dataset004_Hippocampus", "Dataset999"]
    found = {entry.name: name for entry, name in protocol.datasets_of(mine).items()}
    assert found == {"ACD": "Dataset027_ACDC", "KiTS": "Dataset220_kits_2023"}
    lacking = {entry.name for entry in protocol.lacking(mine)}
    assert {"ATL", "AMOS", "COS", "TopCoW24"} <= lacking
    assert len(lacking) == len(protocol.datasets) - 2
    assert protocol.lacking([]) == list(protocol.datasets)


def test_what_a_data_set_must_hold_is_compared():
    entry = ProtocolDataset("X", (), "test", cases=10, channels=2, labels=1)
    assert entry.must_hold() == "2 channels, 1 label, 10 labelled cases"
    good = {
        "channel_names": {"0": "T1w", "1": "T2w"},
        "labels": {"background": 0, "tumour": 1, "ignore": 2},
        "numTraining": 10,
    }
    assert entry.mistakes(good) == []
    bad = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "whole": [1, 2], "core": [2]}, "numTraining": 10}
    assert entry.mistakes(bad, cases=9) == [
        "X has 2 channels, this data set 1: CT",
        "X has 1 labels or regions besides the background, this data set 2: whole, core",
        "X has 10 labelled cases, this data set 9",
    ]
    unknown = ProtocolDataset("Y", (), "test")
    assert unknown.must_hold() == UNKNOWN
    assert unknown.mistakes(bad) == []  # what is not known is not compared


def test_published_numbers_are_marked_and_beside_most_labels_only(tmp_path):
    folder = make_comparison(
        tmp_path,
        datasets=["Dataset001_ATLAS22", "Dataset002_Mine"],
        labelled=[10, "all"],
        protocol="spark3d",
        cases=4,
        folds=[0],
        metrics=["Dice"],
    )
    html = write_report(folder).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(html)
    aside = re.findall(r'<t[hd][^>]* class="aside">(.*?)</t[hd]>', html)
    assert len(aside) == 6 * (1 + 2 + 2)  # six published rows: header, two data sets, mean, rank; once
    assert "Spark3D<small>published, ResEnc-L</small>" in aside
    assert "0.6695" in aside  # ATLAS
    assert "0.7237<small>of 11 data sets</small>" in aside
    assert "2.00" in aside
    assert "published numbers, for orientation" in reader.text
    assert "Spark3D: Brain metastases, HNTS-MRG, Aneurysms, which are not here." in reader.text
    assert "not checked against the paper" in reader.text


@pytest.mark.parametrize("family", ["Primus", "ResidualEncoderUNet", None])
def test_published_numbers_are_those_of_the_own_kind_of_network(tmp_path, family):
    folder = make_comparison(
        tmp_path, datasets=["Dataset001_A"], labelled=["all"], protocol="openmind", cases=4, metrics=["Dice"], seeds=[0]
    )
    for file in folder.glob("cells/**/cell.json"):
        noted = json.loads(file.read_text())
        if noted["transfer"]:
            noted["transfer"]["target"] = {"family": family}
        file.write_text(json.dumps(noted | {"plans": "nnUNetPlans_finetune"}))
    html = write_report(folder).read_text(encoding="utf-8")
    assert ("published, Primus-M" in html) == (family == "Primus")
    assert ("published, ResEnc-L" in html) == (family == "ResidualEncoderUNet")
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["published"]) == len(load_protocol("openmind").published)
    assert "0.7091" in html  # all of them are in the section on the protocol
