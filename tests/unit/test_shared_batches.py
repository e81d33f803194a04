"""A batch shared by processes, or taken in parts, has the loss and the gradients of the batch in one piece."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_ssl.backbones.drop_path import drop_by_image
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.trainers.loop.micro_batches import merge_encoded, split_inputs
from nnunet_ssl.trainers.loop.stepping import mean_of_micro_batches
from nnunet_ssl.views.rng import dropped

WORKER = Path(__file__).with_name("shared_batch_worker.py")
MODULE = runpy.run_path(str(WORKER))
CASES = [f"{name}-{kind}" for name, kind in MODULE["CASES"]]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of one process, and of each of two, by (case, parts)."""
    folder = tmp_path_factory.mktemp("shared")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), "2", str(folder)], env=environment) for rank in (0, 1)
    ]
    alone = MODULE["run"](0, 1)
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    return alone, torch.load(folder / "2_0.pt"), torch.load(folder / "2_1.pt")


def assert_equal(expected, found):
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-4, abs=1e-5)
    assert expected[1].keys() == found[1].keys()
    scale = max(g.abs().max().item() for g in expected[1].values())
    assert scale > 1e-4
    for name, gradient in expected[1].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-5 * max(scale, 1)), name


def test_every_own_method_is_here():
    own = {m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")}
    assert {name for name, _ in MODULE["CASES"]} == own
    assert len(CASES) == sum(len(get_method(name).backbones) for name in own)


@pytest.mark.parametrize(("name", "kind"), MODULE["CASES"])
def test_networks_drop_paths(name, kind):
    """Else the order in which they are given the images would not matter to what follows."""
    method, _ = MODULE["build"](name, kind)
    gone = [dropped(MODULE["KEYS"], 4, p.drop_prob, p.number) for p in drop_by_image(method) if p.drop_prob > 0]
    assert 0 < sum(g.sum() for g in gone) < 4 * len(gone)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_are_the_whole(results, case, parts):
    assert_equal(results[0][case, 1], results[0][case, parts])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_are_one(results, case, parts):
    for process in results[1:]:
        assert_equal(results[0][case, 1], process[case, parts])


def test_split_keeps_the_views_of_an_image_together():
    # Two views of four images, first views first: image i has the values i and 10 + i.
    inputs = {"views": torch.tensor([0, 1, 2, 3, 10, 11, 12, 13]), "count": torch.tensor(8.0), "level": torch.tensor(3)}
    parts = split_inputs(inputs, 4, 2, ["count"])
    assert [p["views"].tolist() for p in parts] == [[0, 1, 10, 11], [2, 3, 12, 13]]
    assert [p["count"].item() for p in parts] == [4, 4]
    assert [p["level"].item() for p in parts] == [3, 3]
    assert torch.equal(merge_encoded([{"views": p["views"]} for p in parts], 4)["views"], inputs["views"])
    with pytest.raises(ValueError, match=r"views \(8,\).*multiple of the 3 images"):
        split_inputs({"views": inputs["views"]}, 3, 3, [])


def test_statistics_of_parts_give_the_mean_of_the_whole():
    """As `after_step` is given them: sums and numbers of rows, which are divided there."""
    rows = torch.arange(12.0).view(4, 3)
    parts = [{"sum": part.sum(dim=0), "rows": torch.tensor(len(part))} for part in (rows[:1], rows[1:])]
    found = mean_of_micro_batches(parts)
    torch.testing.assert_close(found["sum"] / found["rows"], rows.mean(dim=0))
    alone = mean_of_micro_batches(parts[:1])
    assert alone["sum"].data_ptr() != parts[0]["sum"].data_ptr()  # compiled code may write over that
