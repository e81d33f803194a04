"""Bring the matrix "layout x what is found" into docs/corpus.md: small trees in each layout are made and imported.

python docs/make_layouts.py            # --check: exit with 1 when the page is out of date
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np

from nnunet_ssl.corpus.importing import ImportOptions, import_corpus
from nnunet_ssl.corpus.sources.kinds import SourceOptions, kind_of
from nnunet_ssl.corpus.table import read_table

PAGE = Path(__file__).resolve().parent / "corpus.md"
BEGIN, END = "<!-- layouts: make docs -->\n", "<!-- end of layouts -->\n"

# Files of one case, with {n} for its number; an image is "image" or "ct" (in Hounsfield units), a label map "label".
MSD = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}, "numTraining": 3, "training": []}
V1 = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}, "numTraining": 3, "training": []}
V2 = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "numTraining": 3, "file_ending": ".nii.gz"}
TREES: dict[str, tuple[dict[str, str], dict[str, object] | None]] = {
    "nnU-Net v2": ({"imagesTr/a_{n:03d}_0000.nii.gz": "image", "labelsTr/a_{n:03d}.nii.gz": "label"}, V2),
    "nnU-Net v2, without dataset.json": (
        {"imagesTr/a_{n:03d}_0000.nii.gz": "image", "labelsTr/a_{n:03d}.nii.gz": "label"},
        None,
    ),
    "nnU-Net v1": (
        {
            "imagesTr/a_{n:03d}_0000.nii.gz": "image",
            "labelsTr/a_{n:03d}.nii.gz": "label",
            "imagesTs/b_{n:03d}_0000.nii.gz": "image",
        },
        V1,
    ),
    "Medical Decathlon": (
        {
            "imagesTr/liver_{n}.nii.gz": "image",
            "labelsTr/liver_{n}.nii.gz": "label",
            "imagesTs/liver_9{n}.nii.gz": "image",
        },
        MSD,
    ),
    "KiTS": ({"case_{n:05d}/imaging.nii.gz": "ct", "case_{n:05d}/segmentation.nii.gz": "label"}, None),
    "LiTS": ({"volume-{n}.nii": "ct", "segmentation-{n}.nii": "label"}, None),
    "BTCV": ({"img/img{n:04d}.nii.gz": "ct", "label/label{n:04d}.nii.gz": "label"}, None),
    "TotalSegmentator": (
        {
            "s{n:04d}/ct.nii.gz": "ct",
            "s{n:04d}/segmentations/aorta.nii.gz": "label",
            "s{n:04d}/segmentations/liver.nii.gz": "label",
        },
        None,
    ),
    "ACDC": (
        {
            "patient{n:03d}/patient{n:03d}_frame01.nii.gz": "image",
            "patient{n:03d}/patient{n:03d}_frame01_gt.nii.gz": "label",
            "patient{n:03d}/patient{n:03d}_frame12.nii.gz": "image",
            "patient{n:03d}/patient{n:03d}_frame12_gt.nii.gz": "label",
        },
        None,
    ),
    "VerSe": (
        {
            "rawdata/sub-verse{n:03d}/sub-verse{n:03d}_ct.nii.gz": "ct",
            "derivatives/sub-verse{n:03d}/sub-verse{n:03d}_seg-vert_msk.nii.gz": "label",
        },
        None,
    ),
    "BIDS": (
        {
            "sub-{n:02d}/anat/sub-{n:02d}_T1w.nii.gz": "image",
            "derivatives/labels/sub-{n:02d}/anat/sub-{n:02d}_T1w_dseg.nii.gz": "label",
        },
        None,
    ),
    "folders of patients": ({"Patient_{n:03d}/2019-03-0{n}/T1 MPRAGE sag.nii.gz": "image"}, None),
    "label maps called anything": ({"scans/scan{n}.nii.gz": "image", "scans/drawn{n}.nii.gz": "label"}, None),
}


def make_tree(name: str, folder: Path, cases: int = 3) -> tuple[set[Path], set[Path]]:
    """Write a tree of a layout; returns its images and its label maps."""
    files, description = TREES[name]
    made: dict[str, set[Path]] = {"image": set(), "ct": set(), "label": set()}
    for n in range(1, cases + 1):
        for place, (pattern, kind) in enumerate(files.items()):
            path = folder / pattern.format(n=n)
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(_voxels(kind, 100 * n + place), np.eye(4)), path)
            made[kind].add(path)
    if description is not None:
        (folder / "dataset.json").write_text(json.dumps(description))
    return made["image"] | made["ct"], made["label"]


def _voxels(kind: str, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shape = (16, 20, 24)
    grid = np.meshgrid(*(np.linspace(-1, 1, s) for s in shape), indexing="ij")
    distance = sum((g - c) ** 2 for g, c in zip(grid, generator.uniform(-0.2, 0.2, 3), strict=True))
    if kind == "label":
        return (distance < 0.5).astype(np.uint8) + (distance < 0.2).astype(np.uint8)
    noise = generator.normal(0, 15, shape)
    body = distance < 0.8
    return (np.where(body, 40, -1000) + noise if kind == "ct" else np.where(body, 400, 20) + noise).astype(np.int16)


def found_in(name: str, folder: Path) -> list[str]:
    """A row of the matrix: what the import finds in a tree of a layout."""
    tree = folder / "tree"
    images, labels = make_tree(name, tree)
    options = ImportOptions(SourceOptions("X"), num_threads=2)
    import_corpus([str(tree)], str(folder / "Dataset001_X"), options, show_progress=False)
    table = read_table(str(folder / "Dataset001_X"))
    paths = {Path(path) for path in table["path"]}
    of_labels = {Path(path) for path in table["label"].dropna()}
    modalities = ", ".join(sorted(set(table["modality"].dropna()))) or "-"
    sessions = ", e.g. " + table["session"].iloc[0] if table["session"].notna().all() else ""
    return [
        name,
        kind_of(str(tree)),
        f"{len(paths & images)} of {len(images)}",
        str(len(paths & labels)),
        f"{len(of_labels & labels)} of {len(labels)}",
        f"{table['subject'].nunique()}, e.g. {table['subject'].iloc[0]}{sessions}",
        modalities,
    ]


def matrix() -> str:
    """The table as Markdown."""
    header = [
        "layout",
        "read as",
        "images",
        "label maps taken for images",
        "label maps tied to their image",
        "subjects",
        "modality",
    ]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for name in TREES:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(f"| {' | '.join(found_in(name, Path(folder)))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    new = f"{text[:start]}\n{matrix()}\n{text[end:]}"
    if "--check" in sys.argv:
        sys.exit(0 if new == text else "docs/corpus.md is out of date: make docs")
    PAGE.write_text(new)
