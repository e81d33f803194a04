"""How tasks say what they make: a TypedDict each, whose fields have the type of their numbers here and their shape in a comment.

    class Inputs(TypedDict):
        image: Float  # [B, C, *patch]
        hidden: Bool  # [B, 1, *patch]; True = hidden

`Method.Inputs` and `Method.Encoded` name them; `nnunet_ssl.testing` checks that `prepare` and `encode` keep to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

import torch
from torch import Tensor

Float = Annotated[Tensor, torch.float32]
Bool = Annotated[Tensor, torch.bool]
Whole = Annotated[Tensor, torch.int64]
Feature = Annotated[Tensor, None]  # of the network: float32, or what autocast makes of it


def disagreements(said: Any, made: Mapping[str, Tensor]) -> list[str]:
    """Where tensors differ from what their TypedDict says of names and types; nothing where there is none."""
    if said is None:
        return []
    types = {name: hint.__metadata__[0] for name, hint in get_type_hints(said, include_extras=True).items()}
    lacking = [f"{name} is said and not made" for name in said.__required_keys__ if name not in made]
    unsaid = [f"{name} is made and not said" for name in made if name not in types]
    wrong = [
        f"{name} is {made[name].dtype}, said to be {wanted}"
        for name, wanted in types.items()
        if name in made and wanted not in (None, made[name].dtype)
    ]
    return sorted([*lacking, *unsaid, *wrong])
