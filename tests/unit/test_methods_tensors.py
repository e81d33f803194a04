"""What a task says of its tensors is compared with what it makes."""

from __future__ import annotations

from typing import TypedDict

import torch

from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.methods.tensors import Bool, Float, disagreements


class Said(TypedDict):
    """Two of them."""

    image: Float
    hidden: Bool


class Optional(Said, total=False):
    """And one that may be missing."""

    keep: Bool


def test_names_and_types_are_compared():
    image, hidden = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    assert disagreements(None, {"image": image}) == []
    assert disagreements(Said, {"image": image, "hidden": hidden}) == []
    assert disagreements(Optional, {"image": image, "hidden": hidden, "keep": hidden}) == []
    assert disagreements(Said, {"image": hidden, "more": image}) == [
        "hidden is said and not made",
        "image is torch.bool, said to be torch.float32",
        "more is made and not said",
    ]


def test_every_task_of_ours_says_what_it_makes():
    own = [get_method(n) for n in method_names() if get_method(n).__module__.startswith("nnunet_ssl.")]
    assert [cls.name for cls in own if cls.Inputs is None] == []
    assert [cls.name for cls in own if "encode" in vars(cls) and cls.Encoded is None] == []
