"""Take images out of an imported data set whose files hold what others hold."""

from __future__ import annotations

from os.path import join

from nnunet_ssl.corpus.images import load_dataset_json
from nnunet_ssl.corpus.overview.duplicates import find_duplicates
from nnunet_ssl.corpus.table import has_table, read_table, write_table
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json


def drop_duplicates(folder: str, num_threads: int = 8) -> list[str]:
    """Unregister all but the first, by path, of the images with the same content; returns their cases. No image is removed.

    What was preprocessed of them is dropped by the next start. Raises CorpusError for a data set that the import did not make.
    """
    if not has_table(folder):
        raise CorpusError(
            f"--drop-duplicates changes data sets that nnUNetv2_pretrain_import made, and {folder} is none: its images lie in "
            "it. Take them out by hand, or import it without copies: nnUNetv2_pretrain_import -i FOLDER -d NEW --drop-duplicates"
        )
    table = read_table(folder, with_problems=True)
    usable = table[table["problem"].isna() & table["volume"].isna()]  # volumes of one file are images of their own
    groups = find_duplicates(usable["path"].astype(str).tolist(), num_threads)
    extra = {path for group in groups for path in sorted(group)[1:]}
    dropped = usable.loc[usable["path"].isin(extra), "case"].tolist()
    if dropped:
        content = load_dataset_json(folder)
        content["dataset"] = {case: entry for case, entry in content["dataset"].items() if case not in set(dropped)}
        content["numTraining"] = len(content["dataset"])
        write_table(table[~table["case"].isin(dropped)].reset_index(drop=True), folder)
        write_json(content, join(folder, "dataset.json"))
    return dropped
