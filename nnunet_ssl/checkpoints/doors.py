"""The doors at which files of others name classes: plans, adaptation plans, checkpoints and dataset.json.

Whatever enters is looked up, never imported. Networks and their layers: `checked_spec` in checkpoints/networks, the one
list there is. Readers, preprocessors, normalisation and resampling: what nnU-Net's own search finds, if it is of the kind that
belongs there (`require_kind` in integration/class_lookup), or what an installed package has registered. tests/integration/
test_doors.py gives each door one hostile file; docs/reliability.md shows this table.
"""

from __future__ import annotations

from dataclasses import dataclass

NETWORKS = "networks/spec.py: checked_spec"
LOOKUP = "integration/class_lookup.py: require_kind"
NOTHING = "nothing is looked up: shapes of the network in use alone decide"


@dataclass(frozen=True)
class Door:
    """A command, what of a foreign file names classes there, and what these names are checked by."""

    name: str
    command: str
    brings: str
    checked_by: str


DOORS = (
    Door("export a model", "nnUNetv2_pretrain_export MODEL_FOLDER", "plans.json of the folder", NETWORKS),
    Door("export a file", "nnUNetv2_pretrain_export CHECKPOINT", "plans and adaptation plan in the file", NETWORKS),
    Door("info", "nnUNetv2_pretrain_info", "plans and adaptation plan in the file", NETWORKS),
    Door(
        "plan a fine-tuning",
        "nnUNetv2_plan_finetune, nnUNetv2_finetune",
        "plans and adaptation plan in the file",
        NETWORKS,
    ),
    Door("features", "nnUNetv2_extract_features", "plans and adaptation plan in the file", NETWORKS),
    Door("pre-trained weights", "nnUNetv2_train ... -pretrained_weights", "plans in the file", NOTHING),
    Door(
        "fine-tune",
        "nnUNetv2_train -tr SSLFinetuneTrainer, nnUNetv2_finetune -p PLANS",
        "plans in nnUNet_preprocessed",
        NETWORKS,
    ),
    Door("resume a fine-tuning", "nnUNetv2_train -tr SSLFinetuneTrainer --c", "plans in the checkpoint", NOTHING),
    Door("predict", "nnUNetv2_predict, _predict_from_modelfolder", "plans.json of the folder", NETWORKS),
    Door("pre-train", "nnUNetv2_pretrain -p PLANS", "plans in nnUNet_preprocessed", NETWORKS),
    Door("resume a pre-training", "nnUNetv2_pretrain", "plans.json of the result folder", NETWORKS),
    Door("third-party method", "nnUNetv2_pretrain --method denoising", "plans in nnUNet_preprocessed", NETWORKS),
    Door("estimate", "nnUNetv2_pretrain --estimate", "plans in nnUNet_preprocessed", NETWORKS),
    Door("benchmark", "nnUNetv2_pretrain_benchmark DATASET", "plans in nnUNet_preprocessed", NETWORKS),
    Door("preprocess", "nnUNetv2_preprocess, nnUNetv2_pretrain", "readers and functions in plans", LOOKUP),
    Door("corpus", "nnUNetv2_pretrain_corpus", "the reader in dataset.json", LOOKUP),
)


def doors_table() -> str:
    """All doors as a table in Markdown, for the documentation."""
    lines = ["| door | command | what names classes | checked by |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {d.name} | `{d.command}` | {d.brings} | {_code(d.checked_by)} |" for d in DOORS)])


def _code(text: str) -> str:
    file, colon, function = text.partition(": ")
    return f"`{function}` in {file}" if file.endswith(".py") else f"{file}{colon}{function}"
