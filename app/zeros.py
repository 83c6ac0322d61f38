"""A weights file -> how much of its weight matrices is exactly zero."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from safetensors import safe_open


def zero_share(path: Path, sha256: str) -> float:
    """Entries that are exactly zero, as a share of all entries of weight matrices and filters.

    Biases, norms and means are left out: they may be zero in any model.

    Args:
        path: A safetensors file.
        sha256: Its hash; the answer is remembered by it.
    """
    return _share(str(path), sha256)


@functools.lru_cache(maxsize=256)
def _share(path: str, sha256: str) -> float:
    zeros = total = 0
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - a handle, no mapping
            if not name.endswith(".weight"):
                continue
            values = file.get_tensor(name)
            if values.ndim > 1:
                zeros += values.size - int(np.count_nonzero(values))
                total += values.size
    return zeros / total if total else 0.0
