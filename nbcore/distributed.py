"""Several processes that train one model together, as Hugging Face Accelerate starts them.

    accelerate launch --num_processes 2 -m nbcore run RECIPE --data DIR

Every process holds the whole model and takes its share of each batch; gradients are averaged, so
that a step is that of one process with the whole batch. Order, augmentation and mixing are drawn
alike everywhere, for the whole batch, and cut to the own share. Decisions about units are taken
from numbers that all processes share. Only the first process writes files.

What stays different from one process: rounding, dropout and stochastic depth, and BatchNorm, which
normalises by each process's share of the batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

PATIENCE = timedelta(hours=2)
"""How long processes wait for the first one, which alone measures and exports."""

STATISTICS = ("running_mean", "running_var")

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together; alone by default, and then all of this does
    nothing."""

    rank: int = 0
    """Position of this process, 0 for the first."""
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, batch_size: int, device: torch.device) -> Tensor | None:
        """Rows of a batch that this process takes, None for all of them.

        They are as many from the front as from the back, mirrored: `mix` pairs every image with
        the one at the mirrored place, so that partners are in the same process.

        Returns:
            int64 [B / count], ascending.

        Raises:
            ValueError: If the batch cannot be shared out evenly in pairs.
        """
        if self.count == 1:
            return None
        if batch_size % (2 * self.count):
            raise ValueError(
                f"batch_size must be a multiple of {2 * self.count} for {self.count} processes, "
                f"got {batch_size}"
            )
        half = batch_size // (2 * self.count)
        front = torch.arange(self.rank * half, (self.rank + 1) * half, device=device)
        return torch.cat([front, batch_size - 1 - front.flip(0)])

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over processes, all in one transfer."""
        if self.count > 1 and tensors:
            from accelerate.utils import reduce

            flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
            _scatter(reduce(flat, reduction="mean"), tensors)

    def average_gradients_(self, model: nn.Module) -> None:
        """Replace a model's gradients by their means over processes, and its running statistics
        too: evaluated, it is then the same model everywhere."""
        if self.count > 1:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            statistics = [b for n, b in model.named_buffers() if n.endswith(STATISTICS)]
            self.average_([*gradients, *statistics])

    @torch.no_grad()
    def follow_first_(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating-point tensors by those of the first process."""
        if self.count > 1 and tensors:
            from accelerate.utils import broadcast

            flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
            _scatter(broadcast(flat), tensors)

    def gather(self, tensor: Tensor) -> Tensor:
        """All processes' rows, in the order of processes: [B, ...] -> [count * B, ...]."""
        if self.count == 1:
            return tensor
        from accelerate.utils import gather

        return gather(tensor.contiguous())

    def with_averaged_gradient(self, tensor: Tensor) -> Tensor:
        """The same tensor, whose gradient will be the mean over processes."""
        if self.count == 1 or not tensor.requires_grad:
            return tensor
        return _AveragedGradient.apply(tensor, self)

    def of_first(self, compute: Callable[[], Answer]) -> Answer:
        """What the first process computes; the others only wait for it."""
        if self.count == 1:
            return compute()
        from accelerate.utils import broadcast_object_list

        answer: list[Any] = [compute() if self.is_first else None]
        broadcast_object_list(answer)
        return answer[0]

    def from_all(self, value: Answer) -> list[Answer]:
        """Every process's value, in order."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def part(self) -> None:
        """End the group once all are here. A process that ends while threads of the group live
        may be aborted after all its work is done."""
        if self.count > 1:
            from accelerate import PartialState

            state = PartialState()
            state.wait_for_everyone()
            state.destroy_process_group()


ALONE = Processes()


class _AveragedGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, processes: Processes) -> Tensor:
        context.processes = processes
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone()
        context.processes.average_([gradient])
        return gradient, None


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy consecutive stretches of a vector into tensors."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    shaped = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(list(tensors), shaped)


def join(device: str) -> tuple[Processes, torch.device | None]:
    """This process among those that `accelerate launch` (or `torchrun`) started with it.

    Args:
        device: "auto", "cpu" or "cuda", as the user chose it.

    Returns:
        The processes, and the device of this one; None if it is alone and free to choose.

    Raises:
        ValueError: If one GPU is named for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE, None
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"--device {device} names one device for {os.environ['WORLD_SIZE']} processes; leave "
            "--device out, or choose with CUDA_VISIBLE_DEVICES"
        )
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    if device == "cuda" and state.device.type != "cuda":
        raise ValueError("--device cuda was asked for, but torch sees no GPU")
    # A processor has no number, whatever Accelerate says.
    own = torch.device("cpu") if cpu else state.device
    return Processes(rank=state.process_index, count=state.num_processes), own
