"""The service's answers as the JSON of the API: its types, and one function for each."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import gradio as gr
from gradio import processing_utils
from gradio.utils import get_upload_folder
from PIL import Image

from app.flips import Chapter, Flips, Item
from app.service import AttributionMap, BurdenMaps, Cells, Difference, Prediction, VariantInfo
from nbcore.answers import kind_of
from nbcore.checkpoint import write_atomically

WRITERS = ThreadPoolExecutor(4, thread_name_prefix="json")
"""Write variants side by side. Each waits for its pictures, which therefore have a pool of their
own: in one, those that wait could take all places of those that draw."""
PICTURES = ThreadPoolExecutor(8, thread_name_prefix="png")
"""Write pictures side by side: each takes some ten milliseconds, and a comparison has nine."""


class VariantJson(TypedDict):
    id: str
    title: str
    dataset: str
    base: str | None
    pruner: str | None
    mitigation: str | None
    macs_ratio: float
    macs: int
    num_params: int
    size_bytes: int
    metrics: dict[str, Any]
    classes: list[str]
    img_size: int
    grid: list[int]
    site_names: list[str]
    is_default: bool


TopClassJson = TypedDict("TopClassJson", {"class": str, "prob": float, "change": float | None})


class PredictionJson(TypedDict):
    top: list[TopClassJson]
    kl_to_base: float | None
    base_class: str | None
    provider: str
    latency_ms: float


class ServedJson(TypedDict):
    provider: str
    sha256: str
    difference: float


class AttributionJson(TypedDict):
    target: str
    values: list[list[float]]
    signed: bool
    steps: int | None
    note: str | None
    completeness_error: float | None
    deletion: float | None
    insertion: float | None
    difference: list[list[float]] | None
    rank_correlation: float | None
    top_overlap: float | None
    served: ServedJson
    picture: gr.FileData | None
    difference_picture: gr.FileData | None


class SiteJson(TypedDict):
    name: str
    value: float | None


class BurdenJson(TypedDict):
    sites: list[SiteJson]
    maps: list[list[list[float]]] | None
    selection: list[float | None] | None
    stream: list[float | None] | None
    picture: gr.FileData | None
    reason: NotRequired[str]


class DifferenceJson(TypedDict):
    same_class: bool
    kl_to_base: float
    attribution_cosine: float | None
    attribution_rank_correlation: float | None
    attribution_top_overlap: float | None
    largest_burden: float | None
    largest_burden_site: str | None


class ComparisonJson(TypedDict):
    predictions: dict[str, PredictionJson]
    attributions: dict[str, AttributionJson]
    burdens: dict[str, BurdenJson]
    differences: dict[str, DifferenceJson]
    failures: dict[str, str]
    image: gr.FileData


FlipCellJson = TypedDict(
    "FlipCellJson",
    {
        "class": str,
        "prob": float,
        "truth_prob": float,
        "right": bool,
        "kl_to_base": float,
        "burden": float | None,
    },
)


class FlipJson(TypedDict):
    name: str
    position: int
    truth: str
    answers: dict[str, FlipCellJson]
    photo: gr.FileData | None


class FlipsJson(TypedDict):
    total: int
    items: list[FlipJson]


def by_id(cells: Mapping[str, Any], to_json: Callable[[Any], Any]) -> dict[str, Any]:
    failures = cells.failures if isinstance(cells, Cells) else {}
    return dict(zip(cells, WRITERS.map(to_json, cells.values()), strict=True)) | {
        key: {"error": reason} for key, reason in failures.items()
    }


def png(image: Image.Image) -> Any:
    data = io.BytesIO()
    # Takes a third of the time that the usual level takes, for a tenth more bytes.
    image.save(data, "PNG", compress_level=1)
    folder = get_upload_folder()
    path = processing_utils.save_bytes_to_cache(data.getvalue(), "image.png", folder)
    return gr.FileData(path=path, mime_type="image/png").model_dump()


def variant_json(info: VariantInfo) -> VariantJson:
    shown = {key: getattr(info, key) for key in VariantJson.__annotations__}
    lists = {key: list(shown[key]) for key in ("classes", "grid", "site_names")}
    return {**shown, **lists, "metrics": dict(info.metrics)}  # type: ignore[typeddict-item]


def prediction_json(found: Prediction) -> PredictionJson:
    return {
        "top": [{"class": c.class_name, "prob": c.prob, "change": c.change} for c in found.top],
        "kl_to_base": found.kl_to_base,
        "base_class": found.base_class,
        "provider": found.provider,
        "latency_ms": found.latency_ms,
    }


def attribution_json(found: AttributionMap) -> AttributionJson:
    pictures = (found.picture, found.difference_picture)
    picture, difference = PICTURES.map(lambda image: image and png(image), pictures)
    return {
        "target": found.target,
        "values": found.values.tolist(),
        "signed": found.signed,
        "steps": found.steps,
        "note": found.note,
        "completeness_error": found.completeness_error,
        "deletion": None if found.removal is None else found.removal.deletion,
        "insertion": None if found.removal is None else found.removal.insertion,
        "difference": None if found.difference is None else found.difference.tolist(),
        "rank_correlation": found.rank_correlation,
        "top_overlap": found.top_overlap,
        "served": {
            "provider": found.served.provider,
            "sha256": found.served.sha256,
            "difference": found.served.difference,
        },
        "picture": picture,
        "difference_picture": difference,
    }


def burden_json(found: BurdenMaps, picture: Image.Image | None) -> BurdenJson:
    cell: BurdenJson = {
        "sites": [
            {"name": name, "value": value}
            for name, value in zip(found.site_names, found.values, strict=True)
        ],
        "maps": None if found.maps is None else found.maps.tolist(),
        "selection": None if found.selection is None else list(found.selection),
        "stream": None if found.stream is None else list(found.stream),
        "picture": None if picture is None else png(picture),
    }
    return cell | {"reason": found.reason} if found.reason else cell  # type: ignore[return-value]


def difference_json(found: Difference) -> DifferenceJson:
    return {key: getattr(found, key) for key in DifferenceJson.__annotations__}  # type: ignore[return-value]


def flips_json(found: Flips, photo: Callable[[int], Path | None]) -> FlipsJson:
    return {
        "total": found.total,
        "items": [_flip_json(item, photo(item.position)) for item in found.items],
    }


def _flip_json(item: Item, path: Path | None) -> FlipJson:
    file: Any = (
        None
        if path is None
        else gr.FileData(path=str(path), mime_type=f"image/{path.suffix[1:]}").model_dump()
    )
    return {
        "name": item.name,
        "position": item.position,
        "truth": item.truth,
        "answers": {
            key: {
                "class": cell.class_name,
                "prob": cell.prob,
                "truth_prob": cell.truth_prob,
                "right": cell.right,
                "kl_to_base": cell.kl_to_base,
                "burden": cell.burden,
            }
            for key, cell in item.answers.items()
        },
        "photo": file,
    }


def flip_photo(chapter: Chapter, position: int) -> Path | None:
    """A packed photo as a file that the server may show; None if it is not packed."""
    data = chapter.photo(position)
    if data is None:
        return None
    path = Path(get_upload_folder()) / f"flips-{chapter.dataset}" / f"{position}.{kind_of(data)}"
    write_atomically(path, data)
    return path
