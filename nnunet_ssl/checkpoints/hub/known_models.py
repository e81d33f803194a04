"""Public pre-trained networks that fit nnU-Net's architectures: what they are and where they lie.

Only what their pages, their adaptation plans or their papers state; None where they do not. To add one, append to
KNOWN_MODELS. Everything else on the hub works as well, by its id.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from nnunet_ssl.errors import CheckpointError

OPENMIND = "Wald et al., An OpenMind for 3D medical vision self-supervised learning, ICCV 2025, arXiv:2412.17041"
NNFOUNDATION = "Harsy, Ulrich, Wald et al., nnFoundation: 3D Foundation Models for Radiology, 2026, arXiv:2609.26924"
MISSING_PIECE = (
    "Eckstein et al., The Missing Piece: A Case for Pre-Training in 3D Medical Object Detection, MICCAI 2025, "
    "arXiv:2509.15947"
)
OPENMIND_DATA = "OpenMind: 114,570 volumes of 34,191 subjects, from 800 OpenNeuro studies"


@dataclass(frozen=True)
class KnownModel:
    """A public checkpoint. patch in voxels, spacing in mm, or "as it is" for images that were not resampled.

    `filename` only where the repository holds several checkpoints. `method` is one of ours where we have it. `only_for`: the
    program that alone has this network.
    """

    name: str
    method: str
    backbone: str
    data: str
    modality: str
    repo_id: str
    citation: str
    licence: str | None = None
    patch: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | str | None = None
    filename: str | None = None
    note: str | None = None
    only_for: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


def _openmind(backbone: str, suffix: str, method: str, **further: Any) -> KnownModel:
    return KnownModel(
        name=f"{backbone}-OpenMind-{suffix}",
        method=method,
        backbone=backbone,
        data=OPENMIND_DATA,
        modality="MRI (head and neck)",
        repo_id=f"AnonRes/{backbone}-OpenMind-{suffix}",
        citation=OPENMIND,
        licence="cc-by-4.0",
        spacing=(1.0, 1.0, 1.0),
        **further,
    )


def _challenge(team: str, method: str) -> KnownModel:
    return KnownModel(
        name=f"ResEncL-SSL3D-{team}",
        method=method,
        backbone="ResEncL",
        data=OPENMIND_DATA,
        modality="MRI (head and neck)",
        repo_id="MIC-DKFZ/SSL3D-checkpoints",
        citation=OPENMIND,
        filename=f"ResEnc-L/{team}/{team}_ResEncL.pth",
        note="Submitted to the SSL3D challenge (MICCAI 2025). hf://MIC-DKFZ/SSL3D-checkpoints lists all of them, the "
        "Primus-M track included; code and paper of each team are on that page: cite these too.",
    )


def _missing_piece(
    suffix: str, method: str, data: str, modality: str, backbone: str = "ResEncL", **further: Any
) -> KnownModel:
    return KnownModel(
        name=f"{backbone}-MissingPiece-{suffix}",
        method=method,
        backbone=backbone,
        data=data,
        modality=modality,
        repo_id=f"MIC-DKFZ/{backbone}-MissingPiece-{suffix}",
        citation=MISSING_PIECE,
        **{"note": "Made for detection with nnDetection.", **further},
    )


def _nnfoundation(kind: str, backbone: str, note: str) -> KnownModel:
    return KnownModel(
        name=f"nnFoundation{kind}",
        method="mae",
        backbone=backbone,
        data="2.1 million volumes from 125 data sets",
        modality="CT, MRI, PET",
        repo_id=f"MIC-DKFZ/nnFoundation{kind}",
        citation=NNFOUNDATION,
        licence="cc-by-sa-4.0",
        patch=(192, 192, 192),
        spacing="as it is",
        note=note,
    )


CUBE = (160, 160, 160)
SUPERVISED, MIXED = (
    "MultiTalent",
    "mixed",
)  # segmentation of many data sets at once, with their labels (arXiv:2303.14444)
LABELLED = "65 public data sets with segmentations"
STEMS = "One stem per data set, that of CT (351_0) by default: nnUNetv2_pretrain_info lists them, --stem chooses."
KNOWN_MODELS: tuple[KnownModel, ...] = (
    _openmind("ResEncL", "MAE", "mae", patch=CUBE),
    _openmind("ResEncL", "S3D", "spark3d", patch=CUBE),
    _openmind("ResEncL", "MG", "models_genesis", patch=CUBE),
    _openmind("ResEncL", "VF", "volume_fusion", patch=CUBE),
    _openmind("ResEncL", "SwinUNETR", "swin_unetr", patch=CUBE),
    _openmind("ResEncL", "SimCLR", "simclr", patch=(192, 192, 64)),
    _openmind("ResEncL", "VoCo", "voco", note="Holds the encoder only."),
    _openmind("PrimusM", "MAE", "mae", patch=CUBE),
    _openmind("PrimusM", "SimMIM", "simmim", patch=CUBE),
    _openmind("PrimusM", "MG", "models_genesis", patch=CUBE),
    _openmind("PrimusM", "VF", "volume_fusion", patch=CUBE),
    _openmind("PrimusM", "SwinUNETR", "swin_unetr", patch=CUBE),
    _openmind("PrimusM", "SimCLR", "simclr"),
    _openmind("PrimusM", "VoCo", "voco"),
    _nnfoundation("CNN", "ResEncL", "102 million parameters, 410 MB."),
    _nnfoundation("ViT", "Primus", "674 million parameters, 2.7 GB: width 1056, depth 40, 16 heads."),
    _challenge("DKFZ_MAE", "mae"),
    _challenge("Datamen", "VoxCon"),
    _challenge("HiLab", "Vox-MSD"),
    _missing_piece("MAE", "mae", "CT-RATE among others, see its page", "CT, see page", licence="cc-by-4.0"),
    _missing_piece("S3D", "spark3d", "CT-RATE and ABCD Study", "CT, MRI"),
    _missing_piece("MG", "models_genesis", "see its page", "see page"),
    _missing_piece("VoCo", "voco", "see its page", "see page", patch=(192, 192, 64)),
    _missing_piece("MultiTalent", SUPERVISED, LABELLED, MIXED, note=f"{STEMS} Made for detection with nnDetection."),
    _missing_piece(
        "MultiTalent",
        SUPERVISED,
        LABELLED,
        MIXED,
        backbone="RetinaUNet",
        note=f"{STEMS} nnDetection's own network, encoder and FPN: no network of nnU-Net takes these weights.",
        only_for="nnDetection (branch finetuning)",
    ),
)


def find_model(name: str) -> KnownModel | None:
    """The known model of that name, upper and lower case alike."""
    return next((model for model in KNOWN_MODELS if model.name.lower() == name.strip().lower()), None)


def get_model(name: str) -> KnownModel:
    """The known model of that name; raises CheckpointError naming those that sound alike."""
    model = find_model(name) or next((m for m in KNOWN_MODELS if m.repo_id == name and m.filename is None), None)
    if model is None:
        raise CheckpointError(
            f"{name} is none of the known models. {close_names(name)}nnUNetv2_pretrain_models lists all of them; any "
            "other model on the Hugging Face Hub can be given to -pretrained_weights by its id ORG/NAME."
        )
    return model


def close_names(text: str) -> str:
    """What "did you mean" asks for a name or an id, with a space behind it; empty when nothing is close."""
    names = {model.name.lower(): model.name for model in KNOWN_MODELS}
    wanted = text.rpartition("/")[2].lower()
    found = difflib.get_close_matches(wanted, names, n=3, cutoff=0.75)
    return f"Did you mean {' or '.join(names[name] for name in found)}? " if found else ""


def select_models(
    method: str | None = None, backbone: str | None = None, modality: str | None = None, text: str | None = None
) -> list[KnownModel]:
    """Known models with this method, backbone, modality and a name that contains `text`; case does not matter."""

    def fits(model: KnownModel) -> bool:
        wanted = ((method, model.method), (backbone, model.backbone), (modality, model.modality), (text, model.name))
        return all(part is None or _plain(part) in _plain(whole) for part, whole in wanted)

    return [model for model in KNOWN_MODELS if fits(model)]


def _plain(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")
