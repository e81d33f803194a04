"""The notebook of examples/notebook, run as Jupyter does; only shorter."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook" / "first_steps.ipynb"
SHORT = "scans, labelled = 4, 5\nepochs, iterations = 1, 1\n"
WHY = "pip install -e .[docs]"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason=WHY)
    client = pytest.importorskip("nbclient", reason=WHY)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # as in a shell
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell.source for cell in notebook.cells if cell.get("outputs")] == []  # outputs stay out of the repository
    (chosen,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    chosen.source = SHORT
    runner = client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}, allow_errors=True)
    runner.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    errors = ["\n".join(output["traceback"]) for output in outputs if output["output_type"] == "error"]
    assert errors == [], f"{printed[-4000:]}\n{errors[0]}"
    assert "of the encoder's parameters come from the checkpoint" in printed
    assert len(list((tmp_path / "first_steps" / "segmentations").glob("*.nii.gz"))) == 1
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2  # the preview, and the segmentation
