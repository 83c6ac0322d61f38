"""Parts of the page while they are computed: as high as what will come, so that nothing jumps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from app import markup, text
from app.chart import key
from app.in_short import in_short
from app.layer_maps import null_heading
from app.markup import grid, section
from app.service import AttributionMethod, VariantInfo
from app.sites import layer_and_kind

SKELETON = '<div class="nb-skeleton" aria-hidden="true"></div>'
BAR = '<div class="nb-legend nb-blank" aria-hidden="true"></div>'
LINE = "<p>&nbsp;<small>&nbsp;</small></p>"


def placeholders(
    infos: Sequence[VariantInfo],
    *,
    crop: Image.Image,
    method: AttributionMethod,
    quantity: str,
    before: bool,
    top_k: int,
    truth: str | None = None,
) -> dict[str, str]:
    """HTML of every part that waits, by its name.

    Args:
        infos: The columns.
        crop: What the models see.
        method: Of the attribution maps to come.
        quantity: What the burden maps will show.
        before: The dense model is run, cut live.
        top_k: Classes that will be named.
        truth: The photo's true class, if known.
    """
    columns = len(infos)
    return {
        "names": markup.names(infos, before=before),
        "short": in_short(infos, None, None, before=before),
        "predictions": section(
            text.PREDICTIONS,
            markup.prediction_notes(truth),
            grid("", [_prediction(info, top_k) for info in infos]),
            columns=columns,
            name="predictions",
        ),
        "attribution": markup.attributions(
            # Before retraining the dense model runs, which merges nothing.
            [replace(info, merges=info.merges and not before) for info in infos],
            None,
            {},
            crop=crop,
            method=method,
        ),
        "chart": section(
            text.BURDEN,
            (text.QUANTITY_SHOWS.get(quantity, ""),),
            _chart(infos, before=before),
            columns=columns,
            name="chart",
        ),
        "maps": _maps(infos, quantity, before=before),
        "sheets": "",
        "ablation": section(
            text.CUT,
            (text.CUT_SHOWS,),
            grid("", [_prediction(infos[0], top_k), _tracks(infos), SKELETON + LINE]) + BAR,
            columns=3,
            name="ablation",
        ),
        "costs": markup.costs(infos, {}, before=before),
    }


def _prediction(info: VariantInfo, top_k: int) -> str:
    rows = min(top_k, len(info.classes)) * '<li style="--p:0"><span>&nbsp;</span></li>'
    distance = '<p class="nb-tag">&nbsp;</p>' if info.base else ""
    waits = 'aria-hidden="true" class="nb-waits"'
    return (
        f'<div {waits}><ol class="nb-classes">{rows}</ol><p class="nb-said">&nbsp;</p>'
        f"{distance}</div>"
    )


def _chart(infos: Sequence[VariantInfo], *, before: bool) -> str:
    sites = {site for info in infos for site in info.site_names}
    hollow = not before and any(info.base for info in infos)
    summary = f'<details class="nb-details"><summary>{text.NUMBERS}</summary></details>'
    tracks = grid("", [_tracks(infos)] * len(infos), kind="nb-chart")
    return key(sites, hollow=hollow) + tracks + summary


def _tracks(infos: Sequence[VariantInfo]) -> str:
    """As high as the layers and the axis below them."""
    layers = len({layer_and_kind(site)[0] for info in infos for site in info.site_names})
    return f'<div class="nb-skeleton nb-tracks" style="--layers:{layers}" aria-hidden="true"></div>'


def _maps(infos: Sequence[VariantInfo], quantity: str, *, before: bool) -> str:
    note = f"{text.MAP_SHOWS.get(quantity, '')} {text.MAP_KEYS_LARGE}"
    body = grid("", [SKELETON + LINE] * len(infos), kind="nb-pictures")
    if not before and any(info.base for info in infos):
        nulls = [SKELETON + LINE if info.base else "" for info in infos]
        body += grid(null_heading(), nulls, kind="nb-pictures")
    return (
        f'<div class="nb-section" id="nb-maps" style="--n:{len(infos)}">'
        f'<p class="nb-note">{note}</p>{body}{BAR}</div>'
    )
