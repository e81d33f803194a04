"""Memory that a reading process shares with the training process, used again once that has copied what lay there.

New shared memory costs more than reading a patch: the system clears and maps it page by page, in both processes, and throws it
away after one use. The last byte says who has it, so that nobody has to be told.
"""

from __future__ import annotations

import torch
from torch import Tensor

SENT, FREE = 1, 0


class SharedMemory:
    """The pieces of one reading process, `most` of them at most; where more are on their way, those are used once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._pieces: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """A piece (uint8) of at least `size` bytes and one more; it belongs to the other process until that gives it back."""
        free = sorted((p for p in self._pieces if p[-1] == FREE), key=len)
        piece = next((p for p in free if len(p) > size), None)
        if piece is None:
            # As torch's own collate function does: a tensor from elsewhere would be copied into shared memory to be sent.
            piece = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size + 1))
            if len(self._pieces) >= self.most and free:
                self._pieces = [p for p in self._pieces if p is not free[0]]  # the smallest
            if len(self._pieces) < self.most:
                self._pieces.append(piece)
        piece[-1] = SENT
        return piece


def give_back(piece: Tensor) -> None:
    """Tell the reading process that its piece of memory was copied and can be written anew."""
    piece[-1] = FREE
