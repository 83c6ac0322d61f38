"""Flips: every shipped variant is asked about the whole test split, and the photos on which their
answers differ most tellingly are packed with them.

`renew_flips` is the story: ask, choose, pack, write. What a file holds is `nbcore.answers`.
"""

from nbcore.flips.renew import Renewal, datasets_of, renew_flips

__all__ = ["Renewal", "datasets_of", "renew_flips"]
