"""nnssl's own preprocessing as a third side of `preprocessing.py`, in a process of nnssl's environment.

`python preprocessing_nnssl.py nnssl` is that process: it imports nnssl and nothing of this project, and answers calls as
the processes of `against_nnssl_sides.py` do. How an environment of nnssl is made stands in `against_nnssl.py`.

nnssl gets the plans that the others get: the same target spacing, axes in the order of the file, its own defaults for the
rest. It crops, normalises and resamples as nnU-Net does. It stores no segmentation, where the other two store the non-zero
region or the labels, and looks for no foreground; its files are cut for a patch of 160 voxels whatever `--patch` is.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from against_nnssl_sides import Worker, serve

NAME = "nnssl"
LIBRARIES = ("numpy", "scipy", "scikit-image", "SimpleITK", "blosc2")  # that do the work


class Preprocessing:
    """The side in nnssl's environment."""

    def start(self, spacing: float) -> dict[str, str]:
        """Plans with this target spacing [mm]; the versions of the libraries that do the work."""
        import blosc2
        import torch
        from nnssl.experiment_planning.experiment_planners.plan import ConfigurationPlan, Plan

        torch.set_num_threads(1)
        blosc2.set_nthreads(1)
        resampling = {"order_z": 0, "force_separate_z": None}
        self.configuration = ConfigurationPlan(
            data_identifier="benchmark",
            preprocessor_name="DefaultPreprocessor",
            spacing_style="onemmiso",
            spacing=[spacing] * 3,
            normalization_schemes=["ZScoreNormalization"],
            use_mask_for_norm=[False],
            resampling_fn_data="resample_data_or_seg_to_shape",
            resampling_fn_data_kwargs={"is_seg": False, "order": 3, **resampling},
            resampling_fn_mask="resample_data_or_seg_to_shape",
            resampling_fn_mask_kwargs={"is_seg": True, "order": 1, **resampling},
        )
        self.plan = Plan(
            dataset_name="benchmark",
            plans_name="benchmark",
            original_median_spacing_after_transp=[spacing] * 3,
            image_reader_writer="SimpleITKIO",
            transpose_forward=[0, 1, 2],
            transpose_backward=[0, 1, 2],
            configurations={"onemmiso": self.configuration},
            experiment_planner_used="benchmark",
        )
        return {library: version(library) for library in LIBRARIES}

    def run(self, case: str, image: str, folder: str) -> None:
        """Read, preprocess and store one image; raises RuntimeError where nnssl gave up on it."""
        from nnssl.data.raw_dataset import IndependentImage
        from nnssl.preprocessing.preprocessors.default_preprocessor import preprocess_and_save

        # Collection, data set, subject and session are the folders it stores the image in.
        entry = IndependentImage(0, "benchmark", "0", "benchmark", "0", "0", case, image, "MR")
        if not preprocess_and_save(entry, folder, self.plan, self.configuration, verbose=False):
            raise RuntimeError(f"nnssl could not preprocess {image}")


class Peer:
    """nnssl's process, for `with`; the files it makes lie in `folder/nnssl`. Raises SystemExit when it fails."""

    def __init__(self, python: str, folder: str, spacing: float) -> None:
        self.folder = Path(folder) / NAME
        self.folder.mkdir()
        paths = {f"nnssl_{kind}": str(self.folder) for kind in ("raw", "preprocessed", "results")}
        threads = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
        try:
            self.worker = Worker(NAME, python, Path(folder), paths | threads, __file__)
        except OSError as error:
            raise SystemExit(f"--nnssl {python} cannot be started ({error.strerror}). Expected a Python.") from error
        self.spacing = spacing

    def __enter__(self) -> Peer:
        self.libraries = self._call("start", spacing=self.spacing)["result"]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.worker.end()

    def run(self, case: str, files: dict[str, Any]) -> float:
        """CPU seconds for one image from file to file."""
        return float(self._call("run", case=case, image=files["images"][0], folder=str(self.folder))["cpu"])

    def stored(self, case: str) -> str:
        """Path of what it stored of a case."""
        return str(self.folder / "benchmark" / "0" / "0" / "0" / f"{case}.b2nd")

    def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
        try:
            return self.worker.call(name, **arguments)
        except RuntimeError as error:
            last = "\n".join(self.worker.log.read_text().splitlines()[-10:])  # the log goes with the folder
            self.worker.end()
            raise SystemExit(f"nnssl failed: {error}\n{last}") from error


if __name__ == "__main__":
    serve(Preprocessing())
