"""A mitigation from its name: parts joined by "+", each with its options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from nbcore.mitigation.base import MITIGATIONS, Composition, Mitigation
from nbcore.pruning import PRUNERS


def parts_of(name: str) -> tuple[str, ...]:
    """The mitigations that a name joins by "+"; a name that is short for several is taken apart."""
    parts = (getattr(MITIGATIONS[part], "stands_for", ()) or (part,) for part in name.split("+"))
    return tuple(part for group in parts for part in group)


def create_mitigation(name: str, options: Mapping[str, Mapping[str, Any]]) -> Mitigation:
    """Build a mitigation from its name, parts joined by "+" in any order.

    Args:
        name: E.g. "handoff" or "token_merging+handoff".
        options: Keyword arguments by part.

    Raises:
        ValueError: If a part is unknown or repeated, or options name a part that is not used.
    """
    # Sorted, so that parts which draw from one stream of batches draw alike however they are named.
    parts = sorted(parts_of(name))
    if len(set(parts)) != len(parts):
        raise ValueError(f"mitigation {name!r} names a part twice: {'+'.join(parts)}")
    unused = set(options) - set(parts)
    if unused:
        raise ValueError(
            f"mitigation {name!r} got options for {sorted(unused)}, which it does not use; it "
            f"takes options for {', '.join(parts)}"
        )
    built = [_build(part, options.get(part, {})) for part in parts]
    return built[0] if len(built) == 1 else Composition(built)


def _build(part: str, options: Mapping[str, Any]) -> Mitigation:
    known = inspect.signature(MITIGATIONS[part]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"mitigation {part!r} has no option {unknown}; it takes {', '.join(known) or 'none'}"
        )
    return MITIGATIONS[part](**options)


def check_combination(pruner: str, mitigation: str) -> None:
    """Refuse a host and a mitigation that cannot be combined, by name, before anything is built.

    Args:
        pruner: A name from `nbcore.pruning.PRUNERS`.
        mitigation: As in `create_mitigation`.

    Raises:
        ValueError: With the reason and with what would work.
    """
    create_mitigation(mitigation, {}).check_host(PRUNERS[pruner])
