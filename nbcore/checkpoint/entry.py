"""One entry of the manifest as JSON: typed all the way down, and refused where it contradicts
itself."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nbcore.checkpoint.schema import CheckpointError, Variant
from nbcore.config import ID_RULE, is_id
from nbcore.vit import sites_of

RESERVED = ("base", "own")
"""By these words the app is asked to explain a top class, whichever that is."""


def variant_from_json(entry: Mapping[str, Any]) -> Variant:
    """Read one entry, checking types and the numbers that must agree.

    Raises:
        CheckpointError: If a field is missing, unknown or contradicts another.
    """
    name = entry.get("id", "(without id)") if isinstance(entry, Mapping) else "(not an object)"
    try:
        variant = _read(Variant, entry, "entry")
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"variant {name}: unreadable manifest entry ({error})") from error
    _check(variant)
    return variant


def _read(kind: Any, value: Any, where: str) -> Any:
    """Plain JSON data as what an annotation says, checked all the way down."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _read_object(kind, value, where)
    if origin is UnionType:
        inner = next(arg for arg in args if arg is not NoneType)
        return None if value is None else _read(inner, value, where)
    if origin is Mapping and isinstance(value, dict):
        return {key: _read(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (args[0],) * len(value) if args[1] is Ellipsis else args
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_read(item_kind, item, f"{where}[{i}]") for i, (item_kind, item) in pairs)
    if origin is Literal and isinstance(value, str) and value in args:
        return value
    if origin is None and isinstance(value, int | float | str):
        if kind is float and not isinstance(value, bool | str):
            return float(value)
        if type(value) is kind:
            return value
    wanted = getattr(kind, "__name__", kind) if origin is None else kind
    raise TypeError(f"{where} must be {wanted}, got {value!r:.100}")


def _read_object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} must be an object, got {value!r:.100}")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise TypeError(f"{where} has unknown fields {unknown}")
    missing = [
        name
        for name, f in known.items()
        if name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise TypeError(f"{where} lacks {missing}")
    hints = get_type_hints(kind)
    return kind(**{key: _read(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max


def _require(variant: Variant, ok: bool, what: str) -> None:
    if not ok:
        raise CheckpointError(f"variant {variant.id}: {what}")


def _check(variant: Variant) -> None:
    """Raise CheckpointError if the entry contradicts itself."""
    _require(variant, is_id(variant.id), ID_RULE)
    _require(variant, variant.base != variant.id, "cannot be its own base; a dense one has null")
    _check_sites(variant)
    side, (rows, columns) = variant.patch_size, variant.grid
    _require(
        variant,
        min(side, rows, columns) >= 1,
        f"patch_size and grid must be at least 1, got {side} and {variant.grid}",
    )
    _require(
        variant,
        variant.img_size == side * rows == side * columns,
        f"img_size {variant.img_size} is not patch_size {side} times grid {variant.grid}",
    )
    count = len(variant.classes)
    _require(variant, count >= 2, f"needs at least two classes, has {count}")
    twice = sorted(name for name, times in Counter(variant.classes).items() if times > 1)
    _require(variant, not twice, f"classes {twice} are listed more than once")
    reserved = sorted(set(variant.classes) & set(RESERVED))
    _require(
        variant, not reserved, f"classes {reserved} bear words that the app reserves; rename them"
    )
    crop_pct = variant.preprocessing.crop_pct
    _require(variant, 0 < crop_pct <= 1, f"crop_pct must lie in (0, 1], got {crop_pct}")
    numbers = {**variant.metrics, "macs_ratio": variant.macs_ratio}
    broken = sorted(name for name, value in numbers.items() if not _is_finite(value))
    _require(
        variant, not broken, f"metrics {broken} are not finite, which JSON cannot say; use null"
    )


def _check_sites(variant: Variant) -> None:
    pairs = zip(variant.arch.num_heads, variant.arch.hidden_features, strict=True)
    widths, kept = [n for pair in pairs for n in pair], [len(site.kept) for site in variant.sites]
    _require(variant, kept == widths, f"sites keep {kept} units, arch has {widths}")
    expected = [(site.name, site.kind) for site in sites_of(variant.arch)]
    found = [(site.name, site.kind) for site in variant.sites]
    _require(variant, found == expected, f"sites are {found}, arch has {expected}")
    for site in variant.sites:
        _require(
            variant,
            list(site.kept) == sorted(set(site.kept))
            and min(site.kept) >= 0
            and max(site.kept) < site.total,
            f"{site.name}: kept must be ascending, distinct indices below total {site.total}",
        )


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """Plain JSON data of an entry; `variant_from_json` reads it back unchanged.

    Raises:
        CheckpointError: If the entry contradicts itself, as nobody could read it again.
    """
    _check(variant)
    return json.loads(json.dumps(asdict(variant)))


def to_json(data: Any) -> str:
    """Indented JSON with lists of numbers on one line: a kept-units list is no page of its own."""
    text = json.dumps(data, indent=1)
    return re.sub(r"\[\n[\s\d.,eE+-]*\]", lambda m: " ".join(m.group().split()), text) + "\n"
