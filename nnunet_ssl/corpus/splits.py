"""splits_final.json: which cases each fold trains and is validated on. Names in it become the names of files."""

from __future__ import annotations

from os.path import lexists

from nnunet_ssl.corpus.errors import CorpusError
from nnunet_ssl.corpus.names import require_case_names
from nnunet_ssl.files.entering import BadFile, read_json

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


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
