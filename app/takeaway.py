"""What an open page shows, as files and as a link to take along.

Nothing is written to disk: a file is made from the page's own state when it is asked for, at an
address that holds a secret of that page, and is gone with the page an hour after its last use.
"""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from app import gallery, schema, text
from app.comparison import difference
from app.errors import UserError
from app.permalink import query_of
from app.poster import poster
from app.service import AttributionMap, BurdenMaps, Prediction, Service
from app.visit import Visit, attribution_scales, chosen_site, which

Make = Callable[[Service, Visit], bytes]


class Takeaway:
    """Makes the files of open pages."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._visits: WeakValueDictionary[str, Visit] = WeakValueDictionary()

    def address(self, visit: Visit) -> str:
        """Where the files of a page lie, relative to the app; nobody else can guess it."""
        if visit.token is None:
            visit.token = secrets.token_urlsafe(24)
        self._visits[visit.token] = visit
        return f"take/{visit.token}"

    def file(self, token: str, name: str) -> bytes:
        """One file of a page.

        Raises:
            UserError: If the page is gone, shows nothing, or has no such file.
        """
        visit = self._visits.get(token)
        if visit is None or visit.image is None or visit.predictions is None:
            raise UserError(text.ERROR_TAKE_GONE)
        if name not in FILES:
            raise UserError(text.ERROR_TAKE_NAME.format(name=name, known=", ".join(FILES)))
        return FILES[name][1](self.service, visit)


def link(visit: Visit) -> str | None:
    """The query that restores what a page shows, None before it shows anything."""
    if visit.choices is None or visit.image is None:
        return None
    example = gallery.find(visit.image)
    return query_of(visit.choices, example.name if example else None)


def numbers(service: Service, visit: Visit) -> dict[str, Any]:
    """All numbers of a page, as the API words them."""
    choices, example = visit.choices, None if visit.image is None else gallery.find(visit.image)
    assert choices is not None
    predictions: Mapping[str, Prediction] = visit.predictions or {}
    attributions: Mapping[str, AttributionMap] = visit.attributions or {}
    burdens: Mapping[str, BurdenMaps] = visit.burdens or {}
    ratios = burdens if choices.quantity == "burden" else {}
    differences = {
        info.id: difference(
            found,
            found.base_class,
            (attributions.get(info.id), attributions.get(info.base or "")),
            ratios.get(info.id),
        )
        for info in visit.infos
        if info.base is not None
        and (found := predictions.get(info.id)) is not None
        and found.base_class is not None
    }
    return {
        "photo": example.name if example else None,
        "choices": {
            "variants": [info.id for info in visit.infos],
            "method": choices.method,
            "target": choices.target,
            "quantity": choices.quantity,
            "before_retraining": choices.before,
        },
        "variants": {info.id: schema.variant_json(info) for info in visit.infos},
        "predictions": schema.by_id(predictions, schema.prediction_json),
        "attributions": schema.by_id(attributions, _attribution),
        "burdens": schema.by_id(burdens, _burden),
        "differences": schema.by_id(differences, schema.difference_json),
    }


def arrays(service: Service, visit: Visit) -> dict[str, np.ndarray]:
    """All maps of a page by "what/variant", and the crop that the models saw."""
    assert visit.image is not None
    found: dict[str, Any] = {"crop": np.asarray(service.crop(visit.image, _ids(visit)))}
    for key, cell in (visit.attributions or {}).items():
        found |= {f"attribution/{key}": cell.values, f"difference/{key}": cell.difference}
    for key, burden in (visit.burdens or {}).items():
        found |= {
            f"{burden.quantity}/{key}": burden.maps,
            f"{burden.quantity}_before_retraining/{key}": burden.null_maps,
            f"names/{key}": np.array(burden.site_names),
            f"token_group/{key}": next((g for g in burden.groups if g is not None), None),
        }
    return {name: value for name, value in found.items() if value is not None}


def drawing(service: Service, visit: Visit) -> Image.Image:
    """The page as one picture."""
    assert visit.image is not None
    assert visit.choices is not None
    choices = visit.choices
    attributions: Mapping[str, AttributionMap] = visit.attributions or {}
    burdens: Mapping[str, BurdenMaps] = visit.burdens or {}
    site = chosen_site(burdens, choices)
    bars = attribution_scales(service, attributions)
    scales = dict(zip(("attribution", "difference"), bars, strict=False))
    maps = {}
    if site is not None:
        maps = service.burden_pictures(visit.image, burdens, site, which(choices))
        scales["burden"] = service.burden_legend(burdens, which(choices))
    example = gallery.find(visit.image)
    method = next(m for m in service.attribution_methods() if m.name == choices.method)
    targets = sorted({cell.target for cell in attributions.values()})
    return poster(
        visit.infos,
        service.crop(visit.image, _ids(visit)),
        visit.predictions or {},
        attributions,
        burdens,
        site=site,
        site_maps=maps,
        scales=scales,
        captions=(
            text.POSTER_PHOTO.format(
                photo=example.label if example else text.POSTER_OWN_PHOTO,
                method=method.title,
                target=", ".join(targets),
            ),
            text.BEFORE if choices.before else text.POSTER_VALUES,
        ),
    )


def _ids(visit: Visit) -> list[str]:
    return [info.id for info in visit.infos]


def _attribution(cell: AttributionMap) -> dict[str, Any]:
    found = schema.attribution_json(replace(cell, picture=None, difference_picture=None))
    return {key: value for key, value in found.items() if "picture" not in key}


def _burden(cell: BurdenMaps) -> dict[str, Any]:
    found: dict[str, Any] = {**schema.burden_json(cell, None)}
    del found["picture"]
    return found | {
        "quantity": cell.quantity,
        "before_retraining": None if cell.null_values is None else list(cell.null_values),
        "loads": list(cell.loads),
    }


def _json(service: Service, visit: Visit) -> bytes:
    return json.dumps(numbers(service, visit), indent=1, allow_nan=False).encode()


def _npz(service: Service, visit: Visit) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays(service, visit))  # type: ignore[arg-type]
    return data.getvalue()


def _png(service: Service, visit: Visit) -> bytes:
    data = io.BytesIO()
    drawing(service, visit).save(data, "PNG")
    return data.getvalue()


FILES: dict[str, tuple[str, Make]] = {
    "comparison.png": ("image/png", _png),
    "numbers.json": ("application/json", _json),
    "maps.npz": ("application/octet-stream", _npz),
}
"""Media type and maker of each file by its name."""
