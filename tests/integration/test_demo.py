from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_whole_demo_runs(tmp_path: Path) -> None:
    """Every command of the demo, in fresh processes, with next to no training."""
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "nnunet_ssl.demo.run", "--output", str(folder), "--quick", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == str(folder / "report.html")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="https?:', html)
    assert html.count("<img ") >= 5
    assert len(list((folder / "logs").glob("*.log"))) == 3
    comparison = json.loads((folder / "comparison" / "summary.json").read_text())
    assert comparison["cells"]["finished"] == comparison["cells"]["expected"] == 2
    assert all(sentence.split(":")[0] in html for sentence in comparison["answer"])
