"""Mitigation `persistent_dynamic`: pruned weights may come back.

The published idea's second half (Wang et al., arXiv:2407.16716: "persistent dynamic weight
pruning"); its equations were not available to us and the details are ours. Nearest relatives: DPF
(Lin et al., arXiv:2006.07253) and RigL (Evci et al., arXiv:1911.11134).

A straight-through version, where removed weights go on being updated as if they took part, lost 2
to 7 points: they drift under AdamW at the full learning rate, and with them the forward pass at
every change of masks. Here

- removed units rest behind closed gates, exactly as they left (`nbcore.masking`);
- at each removal step, and then at the same pace until masks freeze (`PruneConfig.freeze`), the
  host chooses afresh among all units by its own scores; gates of resting units have gradients, so
  scores that use them see what a return would bring;
- a unit that returns must beat the one it replaces by a `margin`, or units of about equal worth
  would change places for ever, each time at a cost;
- its gate opens over `fade` steps, so the forward pass never jumps;
- how many may return is limited, and the limit cools to none at the last choice, as the exchanges
  of RigL do. The supposition, not shown: scores of resting and of kept units are not alike, as a
  damaged model pulls at resting gates one way while kept ones are near rest; a host that adds up
  pulls (`movement`), or learns scores or gates from them (`wdpruning`, `vit_slim`), then exchanges
  units until masks freeze, and what remains has trained together too briefly.

In `checkpoints/study/cifar10-returns` (two seeds, six hosts, validation top-1) it takes 2.6 to 4.3
points from `movement`, `vit_slim` and `wdpruning` without a limit, and no more than 0.8 from any
host with that of 0.03 which was chosen there. With it, in `checkpoints/study/cifar10-four-layer`,
it adds 2 to 3 points on `wdpruning`, which chooses anew among all units by itself, so that the
limit is what is new to it; 0.7 on `weights`; and nothing that intervals would show on the others.
On MNIST `s2vite`, whose rule of return is its own, loses 0.5 at a tenth of the MACs.

A host with a fixed order of units is refused: none would ever return.
"""

from __future__ import annotations

from nbcore.mitigation.base import MITIGATIONS, Mitigation, refuse
from nbcore.pruning import Pruner
from nbcore.pruning.base import PrunerFactory


@MITIGATIONS.register("persistent_dynamic")
class PersistentDynamic(Mitigation):
    """Asks the host to choose among all units, and trainer and host to make returns gentle."""

    regrows = True

    def __init__(
        self, *, fade: int = 10, margin: float = 0.2, returns: float | None = 0.03
    ) -> None:
        """Choose how units return.

        Args:
            fade: Steps over which the gate of a returning unit opens; 0 opens it at once. Not more
                than the steps between two choices: hosts that exchange many units at each would
                train with gates that are never open.
            margin: By how much of its own size a kept unit's score is raised when units are
                ranked; 0 ranks all alike.
            returns: How many units may return at the first choice, as a share of those of their
                kind that are kept (for `weights`, of the weights of a matrix); falls along a cosine
                to none at the last choice. None sets no limit.
        """
        if fade < 0 or margin < 0:
            raise ValueError(
                f"persistent_dynamic needs fade >= 0 and margin >= 0, got {fade} and {margin}"
            )
        if returns is not None and not 0 < returns <= 1:
            raise ValueError(
                "persistent_dynamic needs returns in (0, 1], a share of the kept units, or None "
                f"for no limit, got {returns}"
            )
        self.fade_steps = fade
        self.margin = margin
        self.returns = returns

    def check_host(self, host: Pruner | PrunerFactory) -> None:
        fault = "ranks units in a fixed order"
        reason = "what left would be ranked last for ever, so nothing would return"
        name = "persistent_dynamic (and published, which holds it)"
        refuse(name, host, lambda other: other.reranks, fault, reason)
