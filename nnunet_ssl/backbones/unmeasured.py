"""What should make training faster on a GPU but was not measured on one: off, unless its name is in NNUNET_SSL_UNMEASURED.

    pairs    convolutions of few channels take two neighbouring voxels as one of twice the channels (`channels_last`)
    fusion   the compiler fuses more of a U-Net's backward pass (`trainers/device/compiling.py`)
    graphs   the kernels of a Primus' step are recorded and started as one (CUDA graphs; `trainers/device/compiling.py`)

    NNUNET_SSL_UNMEASURED=pairs,fusion nnUNetv2_pretrain ...
    python benchmarks/gpu/steps.py mae:resenc_l:8 mae:resenc_l:8:pairs mae:resenc_l:8:fusion     # measures them

Results are the same but for rounding. What pays there becomes the default, the rest goes.
"""

from __future__ import annotations

import os

from nnunet_ssl.errors import SettingsError

VARIABLE = "NNUNET_SSL_UNMEASURED"
KNOWN = ("pairs", "fusion", "graphs")


def wanted(name: str) -> bool:
    """Whether the user asked for one of them; raises SettingsError where the variable holds something unknown."""
    asked = {entry.strip() for entry in os.environ.get(VARIABLE, "").split(",") if entry.strip()}
    unknown = sorted(asked - set(KNOWN))
    if unknown:
        raise SettingsError(
            f"{VARIABLE} names {', '.join(unknown)}; known are {', '.join(KNOWN)}, separated by commas."
        )
    return name in asked
