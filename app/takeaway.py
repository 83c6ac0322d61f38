"""What an open page shows, as files and as a link to take along.

Nothing is written to disk: a file is made from the page's own state when it is asked for, at an
address that holds a secret of that page, and is gone with the page an hour after its last use.
"""

from __future__ import annotations

import dataclasses
import io
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from app import flip_photo, gallery, schema, text
from app.comparison import difference
from app.errors import UserError
from app.permalink import View
from app.poster import poster
from app.quantities import QUANTITIES
from app.service import Ablated, AttributionMap, BurdenMaps, Cells, Prediction, Service
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


def view(service: Service, visit: Visit) -> View | None:
    """What a link to the page brings back, None before it shows anything."""
    if visit.choices is None or visit.image is None:
        return None
    example = gallery.find(visit.image)
    return View(
        choices=visit.choices,
        example=None if example is None else example.name,
        flip=flip_photo.name_of(service, visit.image),
        cut=visit.ablation,
    )


def numbers(service: Service, visit: Visit) -> dict[str, Any]:
    """All numbers of a page, as the API words them."""
    choices, shown = visit.choices, view(service, visit)
    assert choices is not None
    predictions: Mapping[str, Prediction] = visit.predictions or {}
    attributions: Mapping[str, AttributionMap] = visit.attributions or {}
    burdens: Mapping[str, BurdenMaps] = visit.burdens or {}
    ratios = burdens if choices.quantity == "burden" else {}
    differences = {
        info.id: difference(
            predictions[info.id],
            predictions[info.id].base_class or "",
            (attributions.get(info.id), attributions.get(info.base)),
            ratios.get(info.id),
        )
        for info in visit.infos
        if info.base is not None
        and info.id in predictions
        and predictions[info.id].kl_to_base is not None
    }
    status = service.status()
    return {
        "photo": None if shown is None else shown.example or shown.flip,
        "choices": {
            "variants": [info.id for info in visit.infos],
            "method": choices.method,
            "target": choices.target,
            "quantity": choices.quantity,
            "layer": choices.layer,
            "kind": choices.kind,
            "before_retraining": choices.before,
        },
        "shipped": visit.shipped,
        "variants": {info.id: schema.variant_json(info) for info in visit.infos},
        "predictions": schema.by_id(predictions, schema.prediction_json),
        "attributions": schema.by_id(attributions, _attribution),
        "burdens": schema.by_id(burdens, _burden),
        "layers": {
            quantity: schema.by_id(cells, lambda cell: _burden(cell, maps=False))
            for quantity, cells in quantities(service, visit).items()
        },
        "ablation": None if visit.ablated is None else _ablation(visit.ablated),
        "differences": schema.by_id(differences, schema.difference_json),
        "costs": {info.id: _cost(service, visit, info.id) for info in visit.infos},
        "runs_on": {"provider": status.provider, "device": status.device},
        "parity": {info.id: status.parity.get(info.id) for info in visit.infos},
    }


def arrays(service: Service, visit: Visit) -> dict[str, np.ndarray]:
    """All maps of a page by "what/variant", each variant's trust scores, and the crop that the
    models saw."""
    assert visit.image is not None
    found: dict[str, Any] = {"crop": np.asarray(service.crop(visit.image, _ids(visit)))}
    for key, cell in (visit.attributions or {}).items():
        found |= {f"attribution/{key}": cell.values, f"difference/{key}": cell.difference}
        found |= {f"trust/{key}": np.array([_score(cell, name) for name in SCORES])}
    found |= {"trust_names": np.array(SCORES)} if visit.attributions else {}
    for quantity, cells in quantities(service, visit).items():
        for key, burden in cells.items():
            found |= {
                f"{quantity}/{key}": burden.maps,
                f"{quantity}_before_retraining/{key}": burden.null_maps,
                f"{quantity}_names/{key}": np.array(burden.site_names),
                f"token_group/{key}": next((g for g in burden.groups if g is not None), None),
            }
    if visit.ablated is not None:
        cut = visit.ablated.burdens
        found |= {f"ablation/{cut.variant}": cut.maps}
        found |= {f"ablation_names/{cut.variant}": np.array(cut.site_names)}
    return {name: value for name, value in found.items() if value is not None}


SCORES = (
    *("rank_correlation", "top_overlap", "completeness_error", "deletion", "insertion"),
    *("steps", "parity"),
)
"""What `trust/VARIANT` holds, in this order."""


def _score(cell: AttributionMap, name: str) -> float:
    """Not a number where there is none."""
    if name in ("deletion", "insertion"):
        value = None if cell.removal is None else getattr(cell.removal, name)
    else:
        value = cell.served.difference if name == "parity" else getattr(cell, name)
    return float("nan") if value is None else float(value)


def quantities(service: Service, visit: Visit) -> Mapping[str, Cells[BurdenMaps]]:
    """Every quantity that the page can show of its layers; what it does not show now is measured.

    Nothing where the page has no layers to show.
    """
    burdens, image = visit.burdens, visit.image
    if image is None or not burdens:
        return {}
    shown = next(iter(burdens.values())).quantity
    if visit.measured.get(shown) is not burdens:
        visit.measured = {
            name: burdens if name == shown else service.burden(image, _ids(visit), name)
            for name in QUANTITIES
        }
    return visit.measured


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
    example, flip = gallery.find(visit.image), flip_photo.name_of(service, visit.image)
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
                photo=example.label if example else flip or text.POSTER_OWN_PHOTO,
                method=method.title,
                target=", ".join(targets),
            ),
            text.BEFORE if choices.before else text.POSTER_VALUES,
        ),
    )


def _ids(visit: Visit) -> list[str]:
    return [info.id for info in visit.infos]


def _attribution(cell: AttributionMap) -> dict[str, Any]:
    found = schema.attribution_json(
        dataclasses.replace(cell, picture=None, difference_picture=None)
    )
    return {key: value for key, value in found.items() if "picture" not in key}


def _burden(cell: BurdenMaps, *, maps: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {**schema.burden_json(cell, None)}
    for name in ("picture",) if maps else ("picture", "maps"):
        del found[name]
    return found | {
        "quantity": cell.quantity,
        "before_retraining": None if cell.null_values is None else list(cell.null_values),
        "loads": list(cell.loads),
    }


def _ablation(found: Ablated) -> dict[str, Any]:
    asked = found.ablation
    return {
        "model": found.burdens.variant,
        "layers": None if asked.layers is None else list(asked.layers),
        "kinds": list(asked.kinds),
        "share": asked.share,
        "order": asked.order,
        "removed": found.removed,
        "total": found.total,
        "prediction": schema.prediction_json(found.prediction),
        "burdens": _burden(found.burdens),
    }


def _cost(service: Service, visit: Visit, key: str) -> dict[str, Any]:
    """What the table of costs adds to `variants`."""
    found: dict[str, Any] = {"zeros": service.zero_shares().get(key), "latency": None}
    if (time := visit.latencies.get(key)) is not None:
        base = next(info.base for info in visit.infos if info.id == key)
        dense = visit.latencies.get(base or "")
        against = None if dense is None else dataclasses.asdict(time.relative_to(dense))
        found["latency"] = dataclasses.asdict(time.ms) | {
            "rounds": len(time.times_ms),
            "provider": time.provider,
            "of_dense": against,
        }
    return found


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
