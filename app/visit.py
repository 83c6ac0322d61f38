"""What one open page is showing, and the steps that fill it: fast parts first, slow ones after.

Every function yields HTML by the name of a part of the page. A newer request for the same part
makes an older one stop at its next step, so a visitor who changes their mind never sees the older
answer arrive last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from app import ablation_view, chart, flip_photo, in_short, layer_maps, markup, text
from app.errors import NoAnswerError, UserError
from app.gallery import digest, reduced
from app.latency import Latency
from app.placeholders import placeholders
from app.service import (
    Ablated,
    Ablation,
    AttributionMap,
    AttributionMethod,
    BurdenMaps,
    Cells,
    Prediction,
    Service,
    VariantInfo,
)
from app.sites import layer_and_kind

MIN_COLUMNS, MAX_COLUMNS = 2, 4
TOP_K = 5
STEPS = 3
CHECKS_S = 20.0
"""How long the start-up checks are waited for before the models are timed."""
RESULTS = (
    "names",
    "short",
    "predictions",
    "attribution",
    "chart",
    "maps",
    "sheets",
    "ablation",
    "costs",
)
Parts = dict[str, Any]


@dataclass(kw_only=True)
class Choices:
    """What the controls of the page say."""

    variants: Sequence[str]
    method: str
    target: str
    before: bool
    """Show the dense model cut live instead of the trained variants."""
    quantity: str
    layer: int
    """Counted from one."""
    kind: str
    """attn or mlp."""


@dataclass
class Visit:
    """State of one open page; it changes while steps run."""

    image: Image.Image | None = None
    """What the models see of the photo, `gallery.reduced`."""
    infos: tuple[VariantInfo, ...] = ()
    choices: Choices | None = None
    predictions: Cells[Prediction] | None = None
    attributions: Cells[AttributionMap] | None = None
    burdens: Cells[BurdenMaps] | None = None
    ablation: Ablation = field(default_factory=Ablation)
    ablated: Ablated | None = None
    """What `ablation` came to."""
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    """Time of one photo by variant, as it is shown."""
    measured: Mapping[str, Cells[BurdenMaps]] = field(default_factory=dict)
    """All quantities of `burdens`' photo, once a file was asked for that holds them."""
    shipped: bool = False
    """Whether the answers came with the models and not from this server."""
    site_chosen: bool = False
    """Whether the visitor picked a layer; until then the most burdened one is shown."""
    newest: dict[str, int] = field(default_factory=dict)
    token: str | None = None
    """Secret in the addresses of this page's files; None until they are first offered."""

    def ticket(self, part: str) -> int:
        """A number that stays the newest until the part is asked for again."""
        self.newest[part] = self.newest.get(part, 0) + 1
        return self.newest[part]

    def outdated(self, part: str, ticket: int) -> bool:
        return self.newest[part] != ticket


def compare(
    service: Service, visit: Visit, load: Callable[[], Image.Image], choices: Choices
) -> Iterator[Parts]:
    """Everything about the photo that `load` gives.

    Raises:
        UserError: If the photo or the choice of variants is refused; the page then shows why, and
            nothing of another photo: what it showed of this one stays.
    """
    started, image = time.perf_counter(), None
    try:
        image = load()
        infos = chosen(service, choices.variants)
        crop = service.crop(image, choices.variants)
    except UserError as error:
        refused = {
            "standing": markup.standing(service.status()),
            "status": markup.problem(str(error)),
        }
        if image is None or visit.image is None or digest(visit.image) != digest(image):
            _begin(visit, choices)
            refused |= dict.fromkeys((*RESULTS, "take"), "")
        # The browser may not be able to show what cannot be read here.
        yield refused if image is not None else refused | {"image": None}
        raise
    ticket = _begin(visit, choices)
    # All that is asked from here on is asked of these models, so the photo itself may go.
    image = reduced(image, crop)
    visit.image, visit.infos = image, infos
    truth = flip_photo.truth_of(service, image)
    yield {
        "take": "",
        "status": markup.progress(text.WORKING_PREDICT, step=1, steps=STEPS),
        "standing": markup.standing(service.status()),
    } | placeholders(
        infos,
        crop=crop,
        method=_method(service, choices.method),
        quantity=choices.quantity,
        before=choices.before,
        top_k=TOP_K,
        truth=truth,
    )
    answers = service.predict(image, choices.variants, TOP_K, before_retraining=choices.before)
    if visit.outdated("all", ticket):
        return
    visit.predictions = answers
    yield {
        "predictions": markup.predictions(infos, answers, answers.failures, truth),
        "short": _short(visit),
        "costs": _costs(service, visit),
        "status": markup.progress(text.WORKING_BURDEN, step=2, steps=STEPS),
    }
    for parts in _slow_parts(service, visit, choices):
        if visit.outdated("all", ticket):
            return
        yield parts
    seconds = time.perf_counter() - started
    yield {
        "status": markup.done(text.DONE.format(seconds=seconds)),
        "standing": markup.standing(service.status()),
    }


def _begin(visit: Visit, choices: Choices) -> int:
    """Forget what was shown.

    Returns:
        Ticket of what comes next.
    """
    visit.image, visit.choices, visit.shipped = None, choices, False
    visit.predictions = visit.attributions = visit.burdens = visit.ablated = None
    return visit.ticket("all")


def _slow_parts(service: Service, visit: Visit, choices: Choices) -> Iterator[Parts]:
    yield from burdens(service, visit)
    yield from ablated(service, visit)
    tracing = text.WORKING_ATTRIBUTION.format(method=_method(service, choices.method).title)
    yield {"status": markup.progress(tracing, step=3, steps=STEPS)}
    yield from attributions(service, visit)


def _short(visit: Visit) -> str:
    assert visit.choices is not None
    before = visit.choices.before
    return in_short.in_short(visit.infos, visit.predictions, visit.burdens, before=before)


def timed(service: Service, visit: Visit) -> Iterator[Parts]:
    """What one photo takes each of the models that are shown; measured once for all visitors, as
    that takes the processor for some seconds."""
    if visit.predictions is None or set(_ids(visit)) <= set(visit.latencies):
        return
    ticket, dataset = visit.newest.get("all"), visit.infos[0].dataset
    service.wait_for_checks(CHECKS_S)
    # All that may ever stand side by side, since only what took turns can be compared.
    service.latencies([info.id for info in service.variants() if info.dataset == dataset])
    if visit.newest.get("all") == ticket:
        standing = markup.standing(service.status())
        yield {"costs": _costs(service, visit, measured=True), "standing": standing}


def _costs(service: Service, visit: Visit, *, measured: bool = False) -> str:
    assert visit.choices is not None
    known, ids = service.known_latencies(), _ids(visit)
    visit.latencies = {key: known[key] for key in ids if key in known}
    return markup.costs(
        visit.infos,
        visit.predictions or {},
        before=visit.choices.before,
        zeros=service.zero_shares(),
        # A model that cannot be timed stays without a time.
        times=visit.latencies if measured or len(visit.latencies) == len(ids) else None,
    )


def _ids(visit: Visit) -> list[str]:
    return [info.id for info in visit.infos]


def burdens(service: Service, visit: Visit) -> Iterator[Parts]:
    """Chart and maps of the photo that is shown."""
    # A newer comparison takes the photo away while this one is under way.
    image, choices = visit.image, visit.choices
    if image is None or choices is None:
        return
    ticket = visit.ticket("burden")
    cells = service.burden(image, choices.variants, choices.quantity)
    if visit.outdated("burden", ticket):
        return
    visit.burdens = cells
    found: Parts = {}
    if not visit.site_chosen and (site := _most_burdened(cells)):
        choices.layer, kind = layer_and_kind(site)
        choices.kind = kind or choices.kind
        found |= {"layer": choices.layer, "kind": choices.kind}
    elif choices.layer > (last := _num_layers(cells)):
        choices.layer = last
        found |= {"layer": last}
    found["chart"] = chart.chart(
        visit.infos, cells, cells.failures, quantity=choices.quantity, before=choices.before
    )
    found["short"] = _short(visit)
    for parts in site_maps(service, visit):
        found |= parts
    sheets = service.burden_sheets(image, cells, which(choices))
    found["sheets"] = layer_maps.sheets(visit.infos, sheets, quantity=choices.quantity)
    yield found


def ablated(service: Service, visit: Visit) -> Iterator[Parts]:
    """The dense model with the units turned off that the visitor chose."""
    image, choices = visit.image, visit.choices
    if image is None or choices is None:
        return
    ticket, ids = visit.ticket("ablation"), choices.variants
    try:
        found = service.ablate(image, ids, visit.ablation, TOP_K)
    except UserError as error:
        visit.ablated = None
        yield {"ablation": markup.failure(str(error))}
        return
    if visit.outdated("ablation", ticket):
        return
    visit.ablated = found
    burdens = {found.burdens.variant: found.burdens}
    site = _most_burdened(burdens) or found.burdens.site_names[0]
    info = next(info for info in service.variants() if info.id == found.burdens.variant)
    yield {
        "ablation": ablation_view.ablation(
            info,
            found,
            site=site,
            drawn=service.burden_pictures(image, burdens, site)[info.id],
            scale=service.burden_legend(burdens),
        )
    }


def site_maps(service: Service, visit: Visit) -> Iterator[Parts]:
    """Maps of the chosen site, from loads measured before."""
    image, choices, cells = visit.image, visit.choices, visit.burdens
    if image is None or choices is None or cells is None:
        return
    site = chosen_site(cells, choices)
    if site is None:
        yield {"maps": ""}
        return
    yield {
        "maps": layer_maps.maps(
            visit.infos,
            cells,
            service.burden_pictures(image, cells, site, which(choices)),
            {} if choices.before else service.burden_pictures(image, cells, site, "null"),
            site=site,
            before=choices.before,
            scale=service.burden_legend(cells, which(choices)),
        )
    }


def attributions(service: Service, visit: Visit) -> Iterator[Parts]:
    """Attribution maps of the photo that is shown."""
    image, choices = visit.image, visit.choices
    if image is None or choices is None:
        return
    ticket = visit.ticket("attribution")
    cells: Cells[AttributionMap]
    try:
        cells = service.attribute(
            image,
            choices.variants,
            choices.method,
            choices.target,
            before_retraining=choices.before,
        )
    except NoAnswerError as error:
        # The rest of the page stands, so the sentences take the place of the maps alone.
        cells = Cells(error.failures)
    if visit.outdated("attribution", ticket):
        return
    visit.attributions = cells
    yield {
        "attribution": markup.attributions(
            visit.infos,
            cells,
            cells.failures,
            crop=service.crop(image, choices.variants),
            method=_method(service, choices.method),
            scales=attribution_scales(service, cells),
        ),
    }


def attribution_scales(service: Service, cells: Mapping[str, AttributionMap]) -> list[Image.Image]:
    """Colour bar of the maps and, where there are any, that of their differences."""
    if not cells:
        return []
    scales = [service.attribution_legend(cells)]
    if any(cell.difference is not None for cell in cells.values()):
        scales.append(service.difference_legend(cells))
    return scales


def chosen(service: Service, variants: Sequence[str]) -> tuple[VariantInfo, ...]:
    """The models of a comparison.

    Raises:
        UserError: If they are too few or too many, or one is not served.
    """
    known = {info.id: info for info in service.variants()}
    if not min(MIN_COLUMNS, len(known)) <= len(variants) <= MAX_COLUMNS:
        raise UserError(text.ERROR_COUNT.format(count=len(variants)))
    if missing := [key for key in variants if key not in known]:
        raise UserError(f"unknown model {missing[0]!r}; available: {', '.join(known)}")
    return tuple(known[key] for key in known if key in variants)


def _method(service: Service, name: str) -> AttributionMethod:
    methods = {method.name: method for method in service.attribution_methods()}
    if name not in methods:
        raise UserError(f"unknown method {name!r}; available: {', '.join(methods)}")
    return methods[name]


def which(choices: Choices) -> Any:
    """What the burden maps show."""
    return "null" if choices.before else "trained"


def chosen_site(cells: Mapping[str, BurdenMaps], choices: Choices) -> str | None:
    """Name of the site whose maps are shown."""
    names = next((cell.site_names for cell in cells.values()), ())
    wanted = (choices.layer, choices.kind)
    exact = (name for name in names if layer_and_kind(name) in (wanted, (choices.layer, "")))
    return next(exact, names[0] if names else None)


def _num_layers(cells: Mapping[str, BurdenMaps]) -> int:
    layers = [layer_and_kind(site)[0] for cell in cells.values() for site in cell.site_names]
    return max(layers, default=1)


def _most_burdened(cells: Mapping[str, BurdenMaps]) -> str | None:
    found = [
        (value, site)
        for cell in cells.values()
        for site, value in zip(cell.site_names, cell.values, strict=True)
        if value is not None
    ]
    return max(found)[1] if found else None
