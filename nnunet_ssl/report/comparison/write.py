"""comparison.html and summary.json of a comparison's folder, whatever its state."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.report.comparison.build import build_page
from nnunet_ssl.report.comparison.folder import read_comparison
from nnunet_ssl.report.comparison.summary import summarise, without_nan

PAGE, SUMMARY = "comparison.html", "summary.json"


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write comparison.html and summary.json into the folder of a comparison from what lies there; returns the page's path.

    Works with cells that are running, failed or not begun. Raises BadFile where there is no description, and OSError.
    """
    comparison = read_comparison(Path(folder))
    summary = summarise(comparison)
    write_json(without_nan(summary), comparison.folder / SUMMARY)
    file = comparison.folder / PAGE
    build_page(comparison, summary).write(file)
    return file
