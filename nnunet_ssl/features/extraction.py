"""Features of many images: read ahead in other processes, encoded here, written as a table or as files, resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_ssl.corpus.parallel import work_ahead
from nnunet_ssl.corpus.reading import or_reason
from nnunet_ssl.corpus.stamps import stamps_of
from nnunet_ssl.errors import FolderTaken, SettingsError, UnusableImage
from nnunet_ssl.features.encoder import Encoder
from nnunet_ssl.features.placed_map import PlacedMap, joined, names_of
from nnunet_ssl.features.preparation import Preparation, Prepared
from nnunet_ssl.features.scans import Scan
from nnunet_ssl.files.atomic import atomic_path, write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.messages import counted
from nnunet_ssl.progress_bars import progress_bar

CASE = "case"
IMAGE, REGION, PATCH = "image", "region", "patch"
LEVELS = (IMAGE, REGION, PATCH)
TABLES = {".parquet": "to_parquet", ".csv": "to_csv"}
MAPS = {"nifti": ".nii.gz", "npz": ".npz"}
RECORD = "features.json"  # beside the files of a folder; beside a table its name with .json at the end
SAVE_AFTER = 300.0  # seconds between two states of a table on the disk: it is written whole


@dataclass(frozen=True)
class Wanted:
    """What is extracted. level: per "image", per "region" of its labels, or per "patch": the map itself."""

    level: str = IMAGE
    layer: int | str = -1
    pool: tuple[str, ...] = ("mean",)
    overlap: float = 0.5
    maps: str = "nifti"

    def __post_init__(self) -> None:
        if self.level == PATCH and self.layer == "all":
            raise SettingsError("--level patch writes one feature map per image: choose it with --layer N.")
        if not 0 <= self.overlap < 1:
            raise SettingsError(f"--overlap is a share of the patch, 0 to below 1, found {self.overlap}.")


class Output:
    """Where features go: a table (.parquet, .csv), or a folder with a file per image. What is there is continued.

    Raises SettingsError for a file of another kind, FolderTaken for what was extracted otherwise.
    """

    def __init__(self, path: Path, wanted: Wanted, settings: Mapping[str, Any]) -> None:
        self.path, self.wanted = path, wanted
        self.is_table = path.suffix.lower() in TABLES
        if not self.is_table and path.suffix and not path.is_dir():
            raise SettingsError(f"-o is a table ({', '.join(TABLES)}) or a folder, found {path.name}.", found=str(path))
        if self.is_table and wanted.level == PATCH:
            raise SettingsError("Feature maps go into a folder, a file per image: -o FOLDER.")
        if not self.is_table and wanted.level == REGION:
            raise SettingsError(f"Features of regions go into a table: -o {path.name or 'features'}.parquet")
        self.record = path.with_name(f"{path.name}.json") if self.is_table else path / RECORD
        self.settings = json.loads(json.dumps(settings))
        self.rows: list[dict[str, Any]] = []  # what is said of each; the features themselves are in `_values`
        self.left_out: dict[str, str] = {}
        self.known: set[str] = set()
        self.made_from: dict[str, str] = {}  # case: what stands for its files
        self._values: list[np.ndarray] = []
        self._columns: list[str] = []
        self._saved = time.monotonic()
        self._open()

    def _open(self) -> None:
        if self.record.is_file():
            before = read_json(self.record)
            then = before.get("settings") if isinstance(before, dict) else None
            if then != self.settings:
                changed = [
                    key for key in self.settings if not isinstance(then, dict) or then.get(key) != self.settings[key]
                ]
                raise FolderTaken(
                    f"{self.path} holds features that were extracted otherwise ({', '.join(changed)} differ). Choose another -o, "
                    "or move it away."
                )
            self.made_from = dict(before.get("made_from", {}))
        elif self.path.exists() and (self.is_table or any(self.path.iterdir())):
            raise FolderTaken(f"{self.path} is there and is not ours to replace. Choose another -o, or move it away.")
        if self.is_table:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.record.is_file() and self.path.is_file():
                read = (
                    pd.read_parquet
                    if self.path.suffix.lower() == ".parquet"
                    else partial(pd.read_csv, dtype={CASE: str})
                )
                self._take(read(self.path))
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            self.known = {p.name.removesuffix(self.ending) for p in self.path.iterdir() if p.name.endswith(self.ending)}

    @property
    def ending(self) -> str:
        """Of the files in a folder."""
        return MAPS[self.wanted.maps] if self.wanted.level == PATCH else ".npy"

    def _take(self, table: pd.DataFrame) -> None:
        self._columns = [str(c) for c in table if str(c).startswith(tuple(f"{name}_" for name in self.wanted.pool))]
        self.rows = table.drop(columns=self._columns).to_dict("records")
        self._values = list(table[self._columns].to_numpy(np.float32))
        self.known = set(table[CASE])

    def forget_changed(self, scans: Iterable[Scan]) -> list[str]:
        """Drop the features of cases whose files are other ones now, so that they are made anew; returns their names."""
        changed = [s.case for s in scans if s.case in self.known and self.made_from.get(s.case) != source_of(s)]
        gone = set(changed)
        kept = [number for number, row in enumerate(self.rows) if row[CASE] not in gone]
        self.rows, self._values = [self.rows[n] for n in kept], [self._values[n] for n in kept]
        self.known -= gone
        for case in () if self.is_table else changed:
            (self.path / f"{case}{self.ending}").unlink(missing_ok=True)
        return changed

    def put(self, scan: Scan, maps: Sequence[PlacedMap], labels: np.ndarray | None) -> None:
        """Take in the feature maps of an image; raises UnusableImage where regions are wanted and there are none."""
        if self.wanted.level == PATCH:
            maps[0].write(self.path / f"{scan.case}{self.ending}")
        elif self.wanted.level == IMAGE:
            self._add(scan, {}, [found.pooled(self.wanted.pool) for found in maps])
        else:
            if labels is None or not labels.any():
                raise UnusableImage(
                    "its segmentation has no region" if labels is not None else "it has no segmentation"
                )
            per_map = [found.pooled_in(labels, self.wanted.pool) for found in maps]
            for region in per_map[0]:
                place = {"region": region, "voxels": int((labels == region).sum())}
                self._add(scan, place, [regions[region] for regions in per_map])
        self.made_from[scan.case] = source_of(scan)
        if self.is_table and time.monotonic() - self._saved > SAVE_AFTER:
            self.save()

    def _add(self, scan: Scan, place: Mapping[str, Any], parts: Sequence[Mapping[str, np.ndarray]]) -> None:
        if self.is_table:
            self.rows.append({CASE: scan.case, "subject": scan.subject, **place})
            self._values.append(joined(parts).astype(np.float32))
            self._columns = self._columns or names_of(parts)
            return
        with atomic_path(self.path / f"{scan.case}.npy", ".npy") as temporary:
            np.save(temporary, joined(parts))

    def table(self) -> tuple[pd.DataFrame, list[str]]:
        """(a row per image or region, names of the columns that are features)."""
        rows, values, columns = self.rows, self._values, self._columns
        if not self.is_table:
            files = sorted(self.path.glob("*.npy"))
            rows, values = [{CASE: file.stem} for file in files], [np.load(file) for file in files]
            columns = [f"feature_{number}" for number in range(len(values[0]))]
        features = pd.DataFrame(np.stack(values).astype(np.float32), columns=columns)
        return pd.concat([pd.DataFrame(rows), features], axis=1), columns

    def features(self) -> dict[str, np.ndarray]:
        """{case: [C]}, of a row per image."""
        found, columns = self.table()
        return dict(zip(found[CASE], found[columns].to_numpy(np.float64), strict=True))

    def save(self) -> None:
        """Write what there is: the table, and the record of how it came about."""
        if self.is_table and self.rows:
            table, _ = self.table()
            with atomic_path(self.path, self.path.suffix) as temporary:
                getattr(table, TABLES[self.path.suffix.lower()])(temporary, index=False)
        versions = {name: version(name) for name in ("nnunet_ssl", "nnunetv2", "torch")}
        content = {
            "settings": self.settings,
            "left_out": self.left_out,
            "versions": versions,
            "made_from": self.made_from,
        }
        write_json(content, self.record)
        self._saved = time.monotonic()


def source_of(scan: Scan) -> str:
    """What stands for the files that an image's features were made from (sizes, times), and for how it was read."""
    return f"{stamps_of([*scan.files, scan.label])} {scan.modality or ''}".strip()


def settings_of(encoder: Encoder, wanted: Wanted) -> dict[str, Any]:
    """Everything that the features of an image depend on."""
    preparation = asdict(encoder.preparation)
    preparation.pop("notes")
    weights = {k: v for k, v in encoder.origin.to_json().items() if k != "path"}
    return {"weights": weights, **asdict(wanted), "patch_size": list(encoder.patch_size), "preparation": preparation}


def extract(
    encoder: Encoder, scans: Sequence[Scan], wanted: Wanted, output: Output, num_processes: int = 0, batch_size: int = 1
) -> int:
    """Put the features of all images into `output`; returns how many are in it. What cannot be used is in `output.left_out`."""
    changed = output.forget_changed(scans)
    if changed:
        print(f"{counted(len(changed), 'image')} changed since, and made anew: {', '.join(changed[:5])}")
    missing = {scan.case: scan for scan in scans if scan.case not in output.known}
    done = len(scans) - len(missing)
    tasks = {case: (encoder.preparation, scan, wanted.level == REGION) for case, scan in missing.items()}
    try:
        with progress_bar(desc="features", total=len(tasks), disable=not tasks) as bar:
            for case, prepared in work_ahead(read_scan, tasks, num_processes):
                reason = (
                    prepared
                    if isinstance(prepared, str)
                    else _encode(encoder, missing[case], prepared, wanted, output, batch_size)
                )
                if reason is not None:
                    output.left_out[case] = reason
                else:
                    done += 1
                bar.update()
    finally:
        output.save()
    return done


def read_scan(preparation: Preparation, scan: Scan, with_labels: bool) -> Prepared | str:
    """An image, prepared; or why it cannot be used."""
    if with_labels and scan.label is None:
        return "it has no segmentation"
    return or_reason(lambda: preparation.read(scan.files, scan.label if with_labels else None, scan.modality))


def _encode(
    encoder: Encoder, scan: Scan, prepared: Prepared, wanted: Wanted, output: Output, batch_size: int
) -> str | None:
    if len(prepared.image) != encoder.backbone.in_channels:
        return f"it has {len(prepared.image)} channels, the encoder takes {encoder.backbone.in_channels}"
    maps = encoder.maps_of(prepared, wanted.layer, overlap=wanted.overlap, batch_size=batch_size)
    try:
        output.put(scan, maps, prepared.labels)
    except UnusableImage as error:
        return str(error)
    return None
