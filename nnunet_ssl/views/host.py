"""What was decided on the host, brought to the device without waiting for it.

Numbers that say what happens to an image (where it is cut, which change it gets) are drawn on the host, as numpy arrays: a
GPU that works through a queue of earlier steps would have to finish them before it could answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray | Sequence[int], device: torch.device) -> Tensor:
    """A tensor of the values on the device; the copy to a GPU is queued behind what it has to do, and not waited for."""
    tensor = torch.as_tensor(values)
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory the driver copies piece by piece, and waits for the pieces
    return tensor.to(device, non_blocking=True)
