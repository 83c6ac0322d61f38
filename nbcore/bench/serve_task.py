"""What one process of the serving bench holds, and the words it and the bench speak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PRECISIONS = ("fp32", "tf32", "fp16", "int8")
"""fp32 is true single precision; tf32 lets the card round what goes into products to 10 bits."""
HOST, DEVICE = "host", "device"
PLACES = (HOST, DEVICE)
"""From photos in host memory to logits in host memory, or both on the device all along."""
CHECKED_PHOTOS = 8
"""Photos whose logits are held against the first contender's."""


@dataclass(frozen=True, kw_only=True)
class ServeTask:
    """One contender that holds one variant in one precision, in a process of its own."""

    contender: str
    """A name from `CONTENDERS`."""
    variant: str
    """Id."""
    checkpoints: str
    """Folder that holds `manifest.json`."""
    precision: str
    """One of `PRECISIONS`."""
    device: str
    """cpu or cuda."""
    threads: int
    """CPU threads of one run."""
    batches: tuple[int, ...]
    """Photos in one run, ascending."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.contender, self.precision, self.variant


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The most memory that a process has held so far."""

    host_bytes: int | None
    """Resident set at its peak, libraries included; None where the system does not tell."""
    device_bytes: int | None
    """Memory of the process on the card, its context included; None on a CPU or where the driver
    does not tell."""


Message = dict[str, Any]
"""One line of JSON. Asked: {"do": "open"}, {"do": "warm", "batch"}, {"do": "measure", "batch",
"place", "seconds"} or {"do": "logits"}; answered: what was found, or {"error": a sentence}."""
