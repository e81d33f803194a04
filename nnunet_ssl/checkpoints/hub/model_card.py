"""README.md of a published model: what it is, how it came about, how to use it, what to cite."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssl.checkpoints.export.private import Scrubber
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.files.atomic import copy_file, write_text
from nnunet_ssl.quoting import code, markdown
from nnunet_ssl.version import __version__

PROJECT_CITATIONS = (
    "Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature "
    "Methods 2021",
)
TOLD = (
    "ssl",
    "init_args",
    "citations",
    "logging",
    "nnssl_adaptation_plan",
)  # of a checkpoint, what a card is made from
# https://huggingface.co/docs/hub/repositories-licenses; any other licence is "other" with a name
CREATIVE_COMMONS = tuple(f"cc-{kind}-4.0" for kind in ("by", "by-sa", "by-nc", "by-nc-sa", "by-nc-nd"))
HUB_LICENCES = (*CREATIVE_COMMONS, "cc0-1.0", "apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "openrail")
INTENDED = {
    True: """A starting point for training on labelled images, for segmentation above all. It segments nothing by itself.
It was trained without labels on the data above: expect less gain on other modalities, body regions and spacings. Nothing is
known of its behaviour on groups of patients that are rare in these data. It is no medical device and was not tested as one.""",
    False: """Segmentation of images like those it was trained on. It was not tested on other scanners, protocols or groups of
patients, and it will be wrong there without saying so. It is no medical device: every result needs to be looked at.""",
}


def write_model_card(
    folder: str | os.PathLike[str],
    checkpoint: Mapping[str, Any],
    *,
    repo_id: str | None = None,
    licence: str | None = None,
    progress: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write README.md into an export of `checkpoint` (as read_checkpoint returns it), and return its path.

    repo_id: where it will be published; a placeholder otherwise. licence: SPDX identifier, by default the checkpoint's.
    progress: progress.png of the training, copied beside the card when it exists. Nothing of this machine gets into the
    card: paths are taken out. Raises CheckpointError when there is a README.md and `overwrite` is not set.
    """
    folder = Path(folder)
    card = folder / "README.md"
    if card.exists() and not overwrite:
        raise CheckpointError(f"{card} exists and was left alone. Export into a new folder, or move it away.")
    if progress is not None and Path(progress).is_file():
        copy_file(progress, folder / "progress.png")
    names = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file() and f != card)
    facts = Scrubber()({key: checkpoint[key] for key in TOLD if key in checkpoint})
    facts |= {"trainer_name": checkpoint.get("trainer_name"), "current_epoch": checkpoint.get("current_epoch")}
    licence = licence or _part(facts, "ssl").get("licence")
    write_text(card_text(facts, names, repo_id or "ORG/NAME", licence), card)
    return card


def card_text(facts: Mapping[str, Any], names: Sequence[str], repo_id: str, licence: str | None) -> str:
    """The card of a model whose export holds files of these `names`."""
    segments = "plans.json" in names and "dataset.json" in names  # a model folder that nnU-Net predicts with
    ssl, plans = _part(facts, "ssl"), _part(facts, "init_args", "plans")
    sections = [
        front_matter(ssl, segments, licence),
        f"# {repo_id.rpartition('/')[2]}\n\n{_summary(facts, ssl, segments)}",
        "## Data\n\n" + _table(_data(facts, ssl, plans)),
        "## Recipe\n\n" + _table(_recipe(facts, ssl)) + _method_config(ssl),
    ]
    if "progress.png" in names or facts.get("logging"):
        picture = "![Losses, learning rate and time per epoch](progress.png)\n" if "progress.png" in names else ""
        sections.append("## Curves\n\n" + picture + _last_losses(_part(facts, "logging")))
    sections += [
        "## Use\n\n" + (_use_for_segmentation(names, repo_id) if segments else _use_pretrained(names, repo_id, ssl)),
        f"## Intended use and limits\n\n{INTENDED[not segments]}",
        "## Licence\n\n"
        + (
            f"{markdown(licence)}."
            if licence
            else "None was stated: without one nobody else may use the weights. Add one here."
        ),
        "## Cite\n\n" + "\n".join(f"- {markdown(text)}" for text in _citations(facts, ssl)),
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def front_matter(ssl: Mapping[str, Any], segments: bool, licence: str | None) -> str:
    """The YAML block the hub reads: licence, library, task, tags."""
    from huggingface_hub import ModelCardData

    method, backbone = ssl.get("method"), ssl.get("backbone")
    tags = ["medical-imaging", "radiology", "nnunet", "nnunet_ssl", *(t for t in (method, backbone) if t)]
    identifier = licence.lower() if licence else None
    named = {} if identifier in (None, *HUB_LICENCES) else {"license_name": identifier}
    data = ModelCardData(
        license="other" if named else identifier,
        library_name="nnunetv2",
        pipeline_tag="image-segmentation" if segments else "image-feature-extraction",
        tags=[*tags, "self-supervised"] if ssl else tags,
        **named,
    )
    return f"---\n{data.to_yaml()}\n---"


def _summary(facts: Mapping[str, Any], ssl: Mapping[str, Any], segments: bool) -> str:
    nnunet, version = "[nnU-Net](https://github.com/MIC-DKFZ/nnUNet)", _part(ssl, "versions").get("nnunet_ssl")
    trainer = f" ({code(facts['trainer_name'])})" if facts.get("trainer_name") else ""
    written = f"This file was written by nnunet_ssl {__version__}, a plugin of {nnunet}."
    if segments:
        return f"A segmentation model of {nnunet}{trainer}. {written}"
    kind = {"unet": "U-Net", "primus": "Primus transformer"}.get(str(ssl.get("backbone")), "network")
    how = code(ssl["method"]) if ssl.get("method") else "a method that is not named"
    if ssl.get("weights") == "teacher":
        how += ": the teacher, which is the moving average of the network that was trained"
    made = f"It was made with nnunet_ssl {markdown(version)}, a plugin of {nnunet}." if version else ""
    other = f"It was trained by another program{trainer}. {written}"
    return f"A {kind} pre-trained without labels by {how}. {made or other}"


def _data(facts: Mapping[str, Any], ssl: Mapping[str, Any], plans: Mapping[str, Any]) -> dict[str, Any]:
    configuration = ssl.get("configuration") or _part(facts, "init_args").get("configuration")
    foreign = _part(facts, "nnssl_adaptation_plan", "pretrain_plan")
    pretrained: Mapping[str, Any] = next(iter(_part(foreign, "configurations").values()), {})
    settings = {**_part(plans, "configurations", str(configuration)), **pretrained, **ssl}  # the last one is right
    dataset_json = _part(facts, "init_args", "dataset_json")
    return {
        "data sets": ssl.get("datasets") or plans.get("dataset_name") or foreign.get("dataset_name"),
        "channels": list(_part(dataset_json, "channel_names").values()) or ssl.get("num_input_channels"),
        "labels": list(_part(dataset_json, "labels")) if not ssl else None,
        "patch [voxels]": settings.get("patch_size"),
        "spacing [mm]": (settings["spacing"] or "as each image has it") if "spacing" in settings else None,
        "normalisation": settings.get("normalization_schemes"),
    }


def _recipe(facts: Mapping[str, Any], ssl: Mapping[str, Any]) -> dict[str, Any]:
    settings, recipe = _part(ssl, "settings"), _part(ssl, "recipe")
    return {
        "trainer": facts.get("trainer_name"),
        "epochs done": facts.get("current_epoch"),
        "iterations per epoch": settings.get("num_iterations_per_epoch"),
        **{markdown(key.replace("_", " ")).replace("|", ""): value for key, value in recipe.items()},
        "batch size": settings.get("batch_size") or recipe.get("batch_size"),
        "seed": settings.get("seed"),
        "versions": [f"{name} {version}" for name, version in _part(ssl, "versions").items()],
    }


def _method_config(ssl: Mapping[str, Any]) -> str:
    if not ssl.get("config"):
        return ""
    return f"\n\nSettings of {code(ssl.get('method'))}:\n\n```json\n{json.dumps(ssl['config'], indent=2)}\n```"


def _last_losses(logging: Mapping[str, Any]) -> str:
    last = [
        f"{name} {logging[key][-1]:.4g}"
        for key, name in (("train_losses", "training"), ("val_losses", "validation"))
        if logging.get(key) and isinstance(logging[key][-1], (int, float)) and math.isfinite(logging[key][-1])
    ]
    return f"\nLoss in the last epoch: {', '.join(last)}." if last else ""


def _use_pretrained(names: Sequence[str], repo_id: str, ssl: Mapping[str, Any]) -> str:
    text = f"""With [nnU-Net](https://github.com/MIC-DKFZ/nnUNet) and the plugin (`pip install nnunet_ssl`), on any data set:

```bash
nnUNetv2_plan_finetune -d DATASET_ID -pretrained_weights {repo_id}
```

It writes plans that fit, and prints the commands to train and predict with them."""
    if "checkpoint_final.pth" in names:
        if ssl.get("backbone") == "unet":
            text += f"""

Without the plugin, stock nnU-Net loads the file where the plans give the same network and number of channels:

```bash
hf download {repo_id} checkpoint_final.pth --local-dir weights
nnUNetv2_train DATASET_ID 3d_fullres 0 -p PLANS -pretrained_weights weights/checkpoint_final.pth
```"""
        if "adaptation_plan.json" in names:
            text += f"""

Programs that read nnssl's format (nnU-Net's development branch, nnDetection, GloViTa) read it as well, e.g.

```bash
nnUNetv2_preprocess_like_nnssl -d DATASET_ID -n NAME -pc https://huggingface.co/{repo_id}
```"""
        text += """

In Python, without running any code of the file:

```python
import torch
weights = torch.load("checkpoint_final.pth", weights_only=True, map_location="cpu")["network_weights"]
```"""
    tensors = next((name for name in names if name.endswith(".safetensors")), None)
    if tensors is not None:
        text += f"""

The weights alone, in Python:

```python
from safetensors.torch import load_file
weights = load_file("{tensors}")
```"""
    return text


def _use_for_segmentation(names: Sequence[str], repo_id: str) -> str:
    folds = sorted({name.split("/")[0].removeprefix("fold_") for name in names if name.startswith("fold_")})
    return f"""With nnU-Net (`pip install nnunetv2`):

```bash
hf download {repo_id} --local-dir model
nnUNetv2_predict_from_modelfolder -i IMAGES -o SEGMENTATIONS -m model -f {" ".join(folds) or "all"}
```"""


def _citations(facts: Mapping[str, Any], ssl: Mapping[str, Any]) -> list[str]:
    """Papers of the method, those stored by other programs, and nnU-Net's; each once."""
    found = list(ssl.get("citations") or [])
    for entry in facts.get("citations") or []:
        if isinstance(entry, Mapping):
            found += [*(entry.get("apa_citations") or []), *(entry.get("bibtex_citations") or [])]
        elif isinstance(entry, str):
            found.append(entry)
    return list(dict.fromkeys(" ".join(str(text).split()) for text in [*found, *PROJECT_CITATIONS]))


def _table(rows: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return markdown(text).replace("|", "\\|")

    lines = [f"| {name} | {shown(value)} |" for name, value in rows.items() if value not in (None, "", [], {})]
    return "\n".join(["| | |", "|---|---|", *lines])


def _part(mapping: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The mapping under these keys, empty where there is none."""
    for key in keys:
        value = mapping.get(key)
        mapping = value if isinstance(value, Mapping) else {}
    return mapping
