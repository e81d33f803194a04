"""Odd files at the doors of data: each ends in one clear line that names the file (and the row), without a hang or a traceback.

    python tests/drills/odd_files.py [--scratch FOLDER] [--seed N] [--mutations N] [--only WORD]

First the files that reports told of: pipes, sockets, devices, links to nowhere and to themselves, folders called like
images, empty files, pointers of Git LFS and git-annex, pages of failed downloads, tables with a header alone, with quotes
that do not close, in other encodings, with cells of a million characters, JSON that is nested 10,000 deep, torn, too large. Then
`--mutations` tables and JSON files that are changed at random (bytes removed, repeated, replaced), from a seed that is printed.
Each is given to the import, in this process with a limit of time, the first kind to the real command too. Prints a line for
what is wrong and a count; exits with 1 when anything was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np

SECONDS = 20  # for one file in this process
LINE = 4000  # characters: nobody reads more of one line


def image(path: Path) -> Path:
    """A small image that can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).normal(100, 10, (10, 11, 12)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path


# ---- files that are no images: (maker of the file, what the line must hold) -----------------------------------------


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has at most 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


NO_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "a pipe"),
    "socket": (_socket, "a socket"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "a device"),
    "folder": (lambda p: p.mkdir(), "a folder"),
    "link to nowhere": (lambda p: p.symlink_to("gone"), "points nowhere"),
    "link to annex": (lambda p: p.symlink_to(".git/annex/objects/x"), "datalad get"),
    "link to itself": (lambda p: p.symlink_to(p.name), "leads back to itself"),
    "empty": (lambda p: p.touch(), "0 bytes"),
    "lfs": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
        "git lfs pull",
    ),
    "annex": (lambda p: p.write_text("/annex/objects/MD5E-s3--0.nii.gz\n"), "git-annex"),
    "web page": (lambda p: p.write_text("<!DOCTYPE html><html>404</html>"), "a web page"),
    "text": (lambda p: p.write_text("hello" * 500), "not a gzip file"),
}

# ---- tables: (content, what the line must hold) ----------------------------------------------------------------------

TABLES: dict[str, tuple[bytes, str]] = {
    "header alone": (b"path,subject\n", "no rows"),
    "no header": (b"", "0 bytes"),
    "open quote": (b'path,subject\ngood.nii.gz,"1\ngood.nii.gz,2\n', "row 2: a quote that is not closed"),
    "open quote at the end": (b'path,subject\ngood.nii.gz,1\ngood.nii.gz,"2', "row 3: a quote that is not closed"),
    "latin-1": (b"path,subject\ngood.nii.gz,M\xfcller\n", "row 2: not in UTF-8"),
    "latin-1 header": (b"path,Schl\xfcssel\ngood.nii.gz,1\n", "row 1 (the header): not in UTF-8"),
    "utf-16": ("path,subject\ngood.nii.gz,1\n".encode("utf-16"), "UTF-16"),
    "spreadsheet": (b"PK\x03\x04" + bytes(2000), "spreadsheet"),
    "zero byte": (b"path,subject\ngood.nii.gz,a\0b\n", "row 2: holds a zero byte"),
    "long cell": (b"path,subject\ngood.nii.gz," + b"x" * 1_000_000 + b"\n", "row 2: more than"),
    "long header": (b"path," + b"x" * 1_000_000 + b"\n", "row 1 (the header): more than"),
    "one line": (b"path,subject\r" * 100_000, "row 1 (the header): more than"),
    "too few fields": (b"path,subject\ngood.nii.gz\n", "row 2: 1 fields"),
    "pipe in a row": (b"path\npipe.nii.gz\n", "row 2: "),
    "loop in a row": (b"path\nloop.nii.gz\n", "row 2: "),
}

# ---- JSON: (content, what the line must hold) ------------------------------------------------------------------------

JSONS: dict[str, tuple[bytes, str]] = {
    "deep list": (b"[" * 10_000 + b"]" * 10_000, "nested more than"),
    "deep object": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested more than"),
    "less deep": (b"[" * 300 + b"]" * 300, "nested more than"),
    "torn": (b'{"channel_names": {"0": "MR"}, "lab', "not valid JSON"),
    "latin-1": (b'{"name": "M\xfcller"}', "not in UTF-8"),
    "empty": (b"", "0 bytes"),
    "huge number": (b'{"numTraining": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    "no object": (b'"hello"', ""),
}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in this thread after so long."""

    def over(*_: object) -> None:
        raise TimeoutError(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def imported(source: Path, raw: Path) -> str:
    """What the import says of a source: its error, or its mistakes and problems."""
    from nnunet_ssl.corpus.importing import ImportOptions, import_corpus
    from nnunet_ssl.corpus.sources.kinds import SourceOptions
    from nnunet_ssl.errors import CorpusError

    options = ImportOptions(SourceOptions("Odd"), lenient=True, num_threads=1)
    try:
        done = import_corpus([str(source)], str(raw / "Dataset001_Odd"), options, show_progress=False)
    except CorpusError as error:
        return str(error)
    problems = [f"{path}: {reason}" for path, reason in done.registered.problems.items()]
    return "\n".join([*map(str, done.mistakes), *problems, *done.notes])


def situations(folder: Path) -> Iterator[tuple[str, Path, str, str]]:
    """(name, source, what a line must name, what it must say)."""
    for name, (make, expected) in NO_IMAGES.items():
        root = folder / f"image {name}"
        image(root / "good.nii.gz")
        make(root / "odd.nii.gz")
        yield f"image: {name}", root, "odd.nii.gz", expected
    root = folder / "loop"
    image(root / "a" / "good.nii.gz")
    (root / "a" / "again").symlink_to("..")
    (root / "pipe").parent.mkdir(exist_ok=True)
    os.mkfifo(root / "pipe")  # without an ending it might be DICOM
    yield "link loop", root, "", ""
    yield "link loop, pattern", root / "**" / "*.nii.gz", "", ""
    for name, (content, expected) in TABLES.items():
        root = folder / f"table {name}"
        image(root / "good.nii.gz")
        os.mkfifo(root / "pipe.nii.gz")
        (root / "loop.nii.gz").symlink_to("loop.nii.gz")
        (root / "scans.csv").write_bytes(content)
        yield f"table: {name}", root / "scans.csv", "scans.csv", expected
    for name, (content, expected) in JSONS.items():
        root = folder / f"json {name}"
        image(root / "imagesTr" / "good_0000.nii.gz")
        (root / "dataset.json").write_bytes(content)
        yield f"dataset.json: {name}", root, "dataset.json", expected
        (folder / f"corpus {name}").mkdir()
        (folder / f"corpus {name}" / "pretrain_data.json").write_bytes(content)
        yield (
            f"pretrain_data.json: {name}",
            folder / f"corpus {name}" / "pretrain_data.json",
            "pretrain_data.json",
            expected,
        )
        root = folder / f"bids {name}"
        image(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
        (root / "sub-01" / "anat" / "sub-01_T1w.json").write_bytes(content)
        yield f"sidecar: {name}", root, "sub-01_T1w.json", expected


def fault(name: str, said: str, named: str, expected: str) -> str | None:
    """What is wrong with what was said of a source."""
    if name.startswith("link loop"):
        return None if "1 subjects, 1 images" in said or not said else f"not one image: {said[:200]}"
    lines = [line for line in said.splitlines() if named in line and expected in line]
    if not lines:
        return f"no line with {named!r} and {expected!r}: {said[:300]!r}"
    return f"a line of {len(lines[0])} characters" if len(lines[0]) > LINE else None


def mutated(content: bytes, dice: random.Random) -> bytes:
    """A file that something happened to."""
    data = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                del data[at : at + dice.randint(1, 20)]
            case 1:
                data[at:at] = data[at : at + dice.randint(1, 30)] * dice.randint(1, 3)
            case 2:
                data[at:at] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 4)))
            case 3:
                data[at:at] = dice.choice(
                    [b'"', b"[" * 200, b"{", b"\n", b"\0", b",", b"\xff\xfe", b"..", b"$HOME", b"NaN"]
                )
            case _:
                del data[at:]
        data = data or bytearray(b"x")
    return bytes(data)


def fuzz(folder: Path, seed: int, number: int) -> list[str]:
    """What went wrong with `number` files changed at random."""
    dice, wrong = random.Random(seed), []
    image(folder / "good.nii.gz")
    image(folder / "other.nii.gz")
    kinds = {
        "scans.csv": b'path,subject,modality,age\ngood.nii.gz,a,"T1, w",3.5\nother.nii.gz,b,T2w,4\ngone.nii.gz,c,,\n',
        "scans.tsv": b"path\tsubject\tcase\ngood.nii.gz\ta\tone\nother.nii.gz\tb\ttwo\n",
        "pretrain_data.json": json.dumps(
            {
                "collection_index": 1,
                "collection_name": "x",
                "datasets": {
                    "1": {
                        "subjects": {
                            "s": {
                                "subject_info": {"age": 3},
                                "sessions": {
                                    "t": {
                                        "images": [
                                            {
                                                "name": "a.nii.gz",
                                                "modality": "T1",
                                                "image_path": str(folder / "good.nii.gz"),
                                            }
                                        ]
                                    }
                                },
                            }
                        }
                    }
                },
            }
        ).encode(),
        "dataset.json": json.dumps(
            {
                "channel_names": {"0": "MR"},
                "labels": {"background": 0},
                "file_ending": ".nii.gz",
                "dataset": {"a": {"images": ["good.nii.gz"]}, "b": {"images": ["other.nii.gz"], "label": None}},
            }
        ).encode(),
    }
    for count in range(number):
        name = dice.choice(sorted(kinds))
        (folder / name).write_bytes(mutated(kinds[name], dice))
        source = folder if name == "dataset.json" else folder / name
        try:
            with tempfile.TemporaryDirectory() as raw, time_limit(SECONDS):
                said = imported(source, Path(raw))
            if any(len(line) > LINE for line in said.splitlines()):
                wrong.append(f"file {count} ({name}): a line of more than {LINE} characters")
        except Exception as error:
            kept = folder.parent / f"wrong_{count}_{name}"
            kept.write_bytes((folder / name).read_bytes())
            wrong.append(f"file {count} ({kept}): {type(error).__name__}: {str(error)[:200]}")
        (folder / name).unlink()
    return wrong


def through_the_command(source: Path, raw: Path) -> tuple[int, str]:
    """(exit code, what it prints) of the real command."""
    program = str(Path(sys.executable).parent / "nnUNetv2_pretrain_import")
    environment = {**os.environ, "nnUNet_raw": str(raw)}
    arguments = [program, "-i", str(source), "-d", "1", "-n", "Odd", "-np", "1"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Run the drill; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--only", default="", help="situations whose name holds this word")
    args = parser.parse_args()
    total = wrong = 0
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for number, (name, source, named, expected) in enumerate(situations(Path(scratch))):
            if args.only not in name:
                continue
            raw = Path(scratch, f"raw{number}")
            raw.mkdir()
            try:
                code, said = through_the_command(source, raw)
                found = fault(name, said, named, expected)
                found = "traceback" if "Traceback (most recent" in said else found
            except subprocess.TimeoutExpired:
                code, found = -1, "hangs"
            total, wrong = total + 1, wrong + bool(found)
            print(f"{'WRONG' if found else 'ok   '} {name}: exit code {code} {found or ''}", flush=True)
        (folder := Path(scratch, "fuzz")).mkdir()
        faults = fuzz(folder, args.seed, args.mutations)
        for line in faults:
            print(f"WRONG {line}")
        print(f"{args.mutations} files changed at random, seed {args.seed}: {len(faults)} wrong")
        if faults and args.scratch is None:
            print("With --scratch FOLDER the files stay there.")
    total, wrong = total + args.mutations, wrong + len(faults)
    print(f"{total - wrong} of {total} as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
