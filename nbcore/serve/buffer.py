"""One input or output of a session on the GPU, and its copy in pinned host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import onnxruntime

TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
}


class Buffer:
    """Room for the largest batch; smaller ones take its first rows."""

    def __init__(self, value: onnxruntime.NodeArg, rows: int, place: str) -> None:
        shape = (rows, *(int(size) for size in value.shape[1:]))
        dtype = TYPES[value.type]
        self.host = torch.zeros(shape, dtype=dtype, pin_memory=place == "cuda")
        self.device = torch.zeros(shape, dtype=dtype, device=place)
        self.kind = self.host.numpy().dtype.type
        self.pointer = self.device.data_ptr()

    def shape(self, size: int) -> tuple[int, ...]:
        return (size, *self.host.shape[1:])

    def fill(self, pieces: Sequence[np.ndarray], count: int) -> None:
        """Copy rows, or one row for all, to the device, in the current stream's turn.

        Raises:
            ValueError: If their shape is another.
        """
        start = 0
        for piece in pieces:
            if piece.shape[1:] != self.host.shape[1:]:
                raise ValueError(f"rows are {self.shape(1)[1:]} here, got {piece.shape[1:]}")
            # Torch copies with all cores; it takes no views that run backwards or are read-only.
            rows = torch.from_numpy(np.require(piece, requirements=["C", "W"]))
            end = count if len(pieces) == len(piece) == 1 else start + len(piece)
            self.host[start:end].copy_(rows)
            start = end
        self.device[:count].copy_(self.host[:count], non_blocking=True)

    def fetch(self, count: int) -> None:
        """Copy rows to the host, in the current stream's turn."""
        self.host[:count].copy_(self.device[:count], non_blocking=True)
