"""One input or output of a session on the GPU, and its copy in pinned host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import onnxruntime

TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
}


class Buffer:
    """Room for the largest batch; smaller ones take its first rows."""

    def __init__(
        self, value: onnxruntime.NodeArg, rows: int, place: str, *, pixels: bool = False
    ) -> None:
        """Take the memory.

        Args:
            value: What is bound.
            rows: The largest batch.
            place: Where it is bound, as torch calls it.
            pixels: Whether float32 rows may be given as 8-bit values too, a quarter to copy, of
                which the device makes floats in [0, 1].
        """
        shape = (rows, *(int(size) for size in value.shape[1:]))
        self.host, self.device = _pair(shape, TYPES[value.type], place)
        self.kind = self.host.numpy().dtype.type
        self.pointer = self.device.data_ptr()
        self._pixels = _pair(shape, torch.uint8, place) if pixels else None
        # A number of the host would be multiplied with as its reciprocal, which rounds differently.
        self._full = torch.tensor(255.0, device=place)

    def shape(self, size: int) -> tuple[int, ...]:
        return (size, *self.host.shape[1:])

    def fill(self, pieces: Sequence[np.ndarray], count: int) -> None:
        """Copy rows, or one row for all, to the device, in the current stream's turn.

        Raises:
            ValueError: If their shape is another, or only some of them are 8-bit.
        """
        host, device = self.host, self.device
        eight_bit = {piece.dtype == np.uint8 for piece in pieces}
        if True in eight_bit:
            if self._pixels is None or False in eight_bit:
                raise ValueError("8-bit values are taken for photos alone, and for all or none")
            host, device = self._pixels
        start = 0
        for piece in pieces:
            if piece.shape[1:] != host.shape[1:]:
                raise ValueError(f"rows are {self.shape(1)[1:]} here, got {piece.shape[1:]}")
            # Torch copies with all cores; it takes no views that run backwards or are read-only.
            rows = torch.from_numpy(np.require(piece, requirements=["C", "W"]))
            end = count if len(pieces) == len(piece) == 1 else start + len(piece)
            host[start:end].copy_(rows)
            start = end
        device[:count].copy_(host[:count], non_blocking=True)
        if True in eight_bit:
            torch.div(device[:count], self._full, out=self.device[:count])

    def fetch(self, count: int) -> None:
        """Copy rows to the host, in the current stream's turn."""
        self.host[:count].copy_(self.device[:count], non_blocking=True)


def _pair(shape: tuple[int, ...], dtype: torch.dtype, place: str) -> tuple[Tensor, Tensor]:
    """The same in pinned host memory and on the device."""
    host = torch.zeros(shape, dtype=dtype, pin_memory=place == "cuda")
    return host, torch.zeros(shape, dtype=dtype, device=place)
