"""A paper's protocol as the defaults of a comparison: its data sets as far as they are here, its schedule, its trainers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnunet_ssl.comparison.protocols.protocol import Protocol
from nnunet_ssl.corpus.datasets import raw_folder
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.messages import counted

BACKBONES = {"primus": "Primus-M", "unet": "ResEnc-L"}  # ours -> the papers' own names


def datasets_here(protocol: Protocol, known: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The asked data sets, or those of the protocol that are `known` here; prints which are missing.

    Raises CorpusError where none of them is here, saying what each must hold.
    """
    found = list(protocol.datasets_of(asked or known).values())
    lacking = [
        f"  {entry.name} ({entry.part}; {entry.modality}, {entry.task}): must hold {entry.must_hold()}; {entry.where}"
        for entry in protocol.lacking(asked or known)
    ]
    if not found and not asked:
        raise CorpusError(
            f"None of the data sets of {protocol.title} is here. They are known by the name behind their number:\n"
            + "\n".join(lacking)
        )
    if lacking:
        print(f"{counted(len(lacking), 'data set')} of {protocol.title} skipped, not here:\n" + "\n".join(lacking))
    return list(asked) or found


def check_datasets(protocol: Protocol, names: Sequence[str]) -> None:
    """Raise CorpusError where a data set cannot be the paper's: other channels or labels. Other numbers of cases are told."""
    wrong, told = [], []
    for entry, name in protocol.datasets_of(names).items():
        folder = raw_folder(name)
        if folder is None:
            continue
        content = read_dataset_json(folder)
        labelled = sum(files["label"] is not None for files in list_images(folder, content).values())
        hard = replace(entry, cases=None).mistakes(content)
        wrong += [f"{name}: {sentence}." for sentence in hard]
        told += [f"NOTE: {name}: {s}." for s in entry.mistakes(content, labelled) if s not in hard]
    print("\n".join(told), end="\n" if told else "")
    if wrong:
        raise CorpusError(
            f"{' '.join(wrong)} So these are not the data sets of {protocol.title}. Leave out --protocol, or correct them."
        )


def trainer_for(protocol: Protocol, backbone: str | None) -> str | None:
    """The paper's trainer for fine-tuning a backbone of ours, None where it names none."""
    trainers = protocol.trainers.get(BACKBONES.get(backbone or "", ""), {})
    return trainers.get("fine-tuned")
