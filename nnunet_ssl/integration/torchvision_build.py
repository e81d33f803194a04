"""Recognise a torchvision that was built for another torch, which breaks timm and with it nnU-Net's trainers."""

from __future__ import annotations

CURE = """\
torchvision does not fit the installed torch: one of them is a CPU build and the other a CUDA build, or their versions
do not belong together. torchvision, timm and with them nnU-Net's trainers fail to import. Install both from one place:
  pip install --force-reinstall torch torchvision                                                     (CUDA)
  pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu    (CPU only)"""


def is_mismatch(error: BaseException) -> bool:
    """Whether importing torchvision failed because its operators are not those of the installed torch."""
    return "torchvision::nms does not exist" in str(error)
