"""What units that left a site gave to the others, so that it can be handed back when they return.

Let W be a site's write columns with its bias as one more column. Columns P that leave give

    W <- W + W_P T        T: [p, n + 1], zero on P; its last column is the constant mu_P - T mu_S

so row u of `shares` says how much of column u each column holds, and W_u shares_u is u's share in
the others. What a unit received from earlier leavers goes on with it, thus the rows change as the
weights do: shares <- shares + shares_P T. Columns P that return take back what they gave, also what
went on from hand to hand; V is what is in them without what they hold of each other:

    W <- W - V shares_P,   V = W_P (I + shares_PP)^-1,   and the same for the rows of `shares`

Leaving and returning with nothing in between restores everything. In between the others have been
trained: they keep what they learned and lose what they were given.

While the gate of a returning unit opens, its share is paid back in equal parts, step by step, so
that the work is done once and not twice or not at all. If it leaves again before the gate is open,
what was not paid yet stays where it is, and only the open part is given away anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class _Debt:
    """What others owe to columns that returned together."""

    columns: Tensor
    """Those that returned [p]."""
    weights: Tensor
    """V [D, p]."""
    gifts: Tensor
    """How much of them each column and the bias holds [p, n + 1]; zero where all was paid."""
    paid: int
    """Parts that are paid; as many as the steps that the gate has opened."""


class Ledger:
    """Gifts among the columns of one layer."""

    def __init__(self, layer: nn.Linear, *, fade_steps: int) -> None:
        self.layer = layer
        self.fade_steps = fade_steps
        self.shares: Tensor | None = None
        """[n, n + 1]; None as long as nothing was given."""
        self.debts: list[_Debt] = []

    @torch.no_grad()
    def hand_over(self, lost: Tensor, kept: Tensor, transfer: Tensor, constant: Tensor) -> None:
        """Give the work of columns that leave to others.

        Args:
            lost: Columns that leave [p].
            kept: Columns that receive [s].
            transfer: T, what each of them receives [p, s].
            constant: What the bias receives [p].
        """
        gift = self.layer.weight.new_zeros(len(lost), self.layer.in_features + 1)
        gift[:, kept] = transfer.to(gift)
        gift[:, -1] = constant.to(gift)
        self._subtract(-(self.layer.weight[:, lost] @ gift))
        if self.shares is None:
            self.shares = gift.new_zeros(self.layer.in_features, gift.shape[1])
        self.shares += self.shares[:, lost] @ gift
        self.shares[lost] = gift
        for debt in self.debts:
            debt.gifts += debt.gifts[:, lost] @ gift
            again = torch.isin(debt.columns, lost)
            self.shares[debt.columns[again]] += self._unpaid(debt) * debt.gifts[again]
            debt.gifts[again] = 0

    @torch.no_grad()
    def hand_back(self, regained: Tensor) -> None:
        """Let columns that return have back what they gave: at once, or in parts by `pay` if their
        gates open over some steps."""
        if self.shares is None:
            return
        own = self.shares[regained]
        among = torch.eye(len(regained), dtype=own.dtype, device=own.device) + own[:, regained]
        weights = torch.linalg.solve(among, self.layer.weight[:, regained], left=False)
        if self.fade_steps:
            self.debts.append(_Debt(regained, weights, own, paid=0))
        else:
            self._subtract(weights @ own)
        self.shares -= torch.linalg.solve(among, self.shares[:, regained], left=False) @ own
        self.shares[regained] = 0

    @torch.no_grad()
    def settle(self, open_columns: Tensor) -> None:
        """Let all other columns pay at once: behind closed gates nothing they do is seen."""
        for debt in self.debts:
            at_once = debt.gifts.clone()
            at_once[:, open_columns] = at_once[:, -1] = 0
            self._subtract(self._unpaid(debt) * (debt.weights @ at_once))
            debt.gifts -= at_once

    @torch.no_grad()
    def pay(self) -> None:
        """Pay one part of every debt."""
        for debt in self.debts:
            self._subtract(debt.weights @ debt.gifts / self.fade_steps)
            debt.paid += 1
        self.debts = [debt for debt in self.debts if debt.paid < self.fade_steps]

    def _unpaid(self, debt: _Debt) -> float:
        """Share that is still to be paid: how far the gate is closed."""
        return 1 - debt.paid / self.fade_steps

    def _subtract(self, amount: Tensor) -> None:
        self.layer.weight.sub_(amount[:, :-1])
        if self.layer.bias is not None:
            self.layer.bias.sub_(amount[:, -1])

    def state_dict(self) -> dict[str, Any]:
        debts = [[debt.columns, debt.weights, debt.gifts, debt.paid] for debt in self.debts]
        return {"shares": self.shares, "debts": debts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        weight = self.layer.weight
        self.shares = None if state["shares"] is None else state["shares"].to(weight)
        self.debts = [
            _Debt(columns.to(weight.device), weights.to(weight), gifts.to(weight), paid)
            for columns, weights, gifts, paid in state["debts"]
        ]
