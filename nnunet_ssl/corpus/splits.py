"""splits_final.json: which cases each fold trains and is validated on. Names in it become the names of files."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from os.path import isfile, lexists

from nnunet_ssl.corpus.names import require_case_names
from nnunet_ssl.errors import BadFile, CorpusError
from nnunet_ssl.files.atomic import copy_file, write_json
from nnunet_ssl.files.entering import read_json

FILE = "splits_final.json"


def require_splits(path: str) -> None:
    """Raise CorpusError unless `path` is missing or holds splits as nnU-Net writes them, of cases that may be called so."""
    if not lexists(path):
        return
    remedy = f"Correct {path}, or remove it: nnU-Net then makes new splits."
    try:
        splits = read_json(path)
    except BadFile as error:
        raise CorpusError(f"{error}. {remedy}") from error
    sides = [
        split.get(side) if isinstance(split, dict) else None for split in _list(splits) for side in ("train", "val")
    ]
    if not isinstance(splits, list) or not all(isinstance(side, list) for side in sides):
        raise CorpusError(f'{path} holds no splits. Expected [{{"train": [cases], "val": [cases]}}, ...]. {remedy}')
    names = [name for side in sides for name in _list(side)]
    require_case_names(dict.fromkeys(n if isinstance(n, str) else repr(n) for n in names), path, remedy)


@contextmanager
def enough_for_folds() -> Iterator[None]:
    """While nnU-Net makes its folds: too few cases for them are a CorpusError, not scikit-learn's ValueError."""
    try:
        yield
    except ValueError as error:
        if "n_splits" not in str(error):
            raise
        raise CorpusError(
            "nnU-Net makes 5 folds, of at least 5 cases, and there are fewer. Use -f all, or add images and preprocess again."
        ) from error


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def take_over_splits(source: str, target: str, cases: Container[str]) -> None:
    """Copy the splits that a raw data set brings, as far as its `cases` are there; raises CorpusError for others there."""
    require_splits(source)
    require_splits(target)
    if not isfile(source):
        return
    if not isfile(target):
        copy_file(source, target)
        return
    given, used = ([_folds(split, cases) for split in read_json(path)] for path in (source, target))
    if used[: len(given)] != given:  # more folds than are given are nnU-Net's business
        raise CorpusError(f"{target} holds other splits than {source}. Remove the one that is not meant.")


def _folds(split: Mapping[str, list[str]], cases: Container[str]) -> list[set[str]]:
    return [{case for case in split[side] if case in cases} for side in ("train", "val")]


def drop_from_splits(path: str, keep: Container[str]) -> None:
    """Take the cases that are no longer there out of every fold, saying so: nnU-Net would look for their files."""
    require_splits(path)
    if not isfile(path):
        return
    splits = read_json(path)
    gone = {case for split in splits for side in ("train", "val") for case in split[side] if case not in keep}
    if gone:
        kept = [{k: [c for c in v if c in keep] if k in ("train", "val") else v for k, v in s.items()} for s in splits]
        write_json(kept, path)
        print(f"{path}: {len(gone)} cases that are no longer there are taken out: {', '.join(sorted(gone)[:5])}.")
