"""Mitigation `distillation`, the control: the pruned model learns from the dense one's answers.

It is known to help; a mitigation that is only as good must say so. Added to the cross-entropy,
which keeps its full weight:

    weight T² KL(softmax(teacher / T) || softmax(student / T)), mean over the batch

Source:
    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    Differs in: the teacher is the model itself at the fork.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nbcore.mitigation.base import MITIGATIONS, StepOutputs, Taught
from nbcore.mitigation.teacher import Teacher


@MITIGATIONS.register("distillation")
class Distillation(Taught):
    """Cross-entropy plus a pull of the logits towards those of a teacher."""

    def __init__(
        self, *, weight: float = 0.5, temperature: float = 2.0, teacher: nn.Module | None = None
    ) -> None:
        """Choose how strongly to pull, and towards what.

        Args:
            weight: Of the term; its factor T² keeps gradients of one size for all T.
            temperature: T.
            teacher: Images [B, 3, S, S] in [0, 1] -> logits [B, K], in evaluation mode, used as it
                is; None means the dense model at the fork, without token merging.
        """
        if weight <= 0 or temperature <= 0:
            raise ValueError(
                f"distillation needs weight > 0 and temperature > 0, got {weight} and {temperature}"
            )
        super().__init__(Teacher(teacher))
        self.weight = weight
        self.temperature = temperature

    def loss_term(self, outputs: StepOutputs) -> Tensor:
        taught = self.teacher(outputs.images).logits
        return self.weight * softened_kl(outputs.logits, taught, self.temperature)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher || student) of softened probabilities, in nats, mean over the batch.

    Args:
        student: Logits [B, K]; any precision, computed in single.
        teacher: Logits [B, K].
        temperature: T, by which both are divided.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence
