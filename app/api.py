"""Named API endpoints: plain JSON in, the service's answer out, pictures as PNG files beside it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from app import gallery, schema
from app.arguments import check_kind, in_plain_words, uploaded_path
from app.flips import Query, find
from app.service import BurdenMaps, Service

COMPUTE, QUICK = "compute", "quick"
"""Comparisons and attributions wait in one line, whether asked by the page or by the API, and
predictions and burdens in another: they take a hundredth of the time, and would wait for places."""


class Endpoints:
    """The documented calls; each method's name, types and first words are what clients see."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def publish(self, *, concurrency: int) -> None:
        """Add all endpoints to the `gr.Blocks` that is being built.

        Args:
            concurrency: Calls of each line computed at the same time; that of comparisons is shared
                with the page.
        """
        for quick in (self.models, self.flips):
            _publish(quick, concurrency_limit=None)
        for brief in (self.predict, self.burden):
            _publish(brief, concurrency_limit=concurrency, concurrency_id=QUICK)
        for endpoint in (self.attribute, self.compare):
            _publish(endpoint, concurrency_limit=concurrency, concurrency_id=COMPUTE)

    def models(self) -> list[schema.VariantJson]:
        """Every variant that is served; `is_default` marks those compared when none are named."""
        return [schema.variant_json(info) for info in self._service.variants()]

    def predict(
        self, image: gr.FileData, variants: list[str] | None = None, top_k: int = 5
    ) -> dict[str, schema.PredictionJson]:
        """Most likely classes by variant id. `change` is prob minus the dense base's prob of that
        class, `kl_to_base` the divergence from its answer in nats, `base_class` its top class."""
        photo, ids = self._seen(image, variants)
        found = self._service.predict(photo, ids, top_k)
        return schema.by_id(found, schema.prediction_json)

    def attribute(
        self,
        image: gr.FileData,
        variants: list[str] | None = None,
        method: str = "integrated_gradients",
        target: str = "base",
    ) -> dict[str, schema.AttributionJson]:
        """Where each variant looked: `values` [rows][columns] of patches. `target`, the explained
        class, is "base" (the dense base's top class), "own" (each variant's own) or a name.
        `difference`, `rank_correlation` and `top_overlap` hold it against dense, if asked for too.
        `completeness_error`, `deletion` and `insertion` say how far to trust it, and `served` which
        file was explained and the largest difference of its logits from the explained twin's."""
        photo, ids = self._seen(image, variants, remembered=True)
        found = self._service.attribute(photo, ids, method, target)
        return schema.by_id(found, schema.attribution_json)

    def burden(
        self, image: gr.FileData, variants: list[str] | None = None, quantity: str = "burden"
    ) -> dict[str, schema.BurdenJson]:
        """What each site carries: `quantity` is burden (ratio to dense; `maps` hold its log2), load
        or residual. `maps` [sites][rows][columns]; `reason` says why there are no values."""
        photo, ids = self._seen(image, variants)
        found = self._service.burden(photo, ids, quantity, live_null=False)
        return self._burdens(photo, found)

    def compare(
        self,
        image: gr.FileData,
        variants: list[str] | None = None,
        method: str = "integrated_gradients",
        target: str = "base",
    ) -> schema.ComparisonJson:
        """All of predict, attribute and burden, how each pruned variant differs from dense, and
        `image`, the crop that the models saw. `failures` says why part of a variant is missing."""
        photo, ids = self._seen(image, variants, remembered=True)
        drawn: dict[str, schema.BurdenJson] = {}
        found = self._service.compare(
            photo,
            ids,
            method,
            target,
            on_burdens=lambda cells: drawn.update(self._burdens(photo, cells)),
        )
        image = schema.PICTURES.submit(schema.png, found.image)
        return {
            "predictions": schema.by_id(found.predictions, schema.prediction_json),
            "attributions": schema.by_id(found.attributions, schema.attribution_json),
            "burdens": drawn,
            "differences": schema.by_id(found.differences, schema.difference_json),
            "failures": dict(found.failures),
            "image": image.result(),
        }

    def flips(
        self,
        pattern: str,
        class_name: str | None = None,
        limit: int = 50,
        offset: int = 0,
        pruned: str | None = None,
        mitigated: str | None = None,
        dataset: str | None = None,
        of: str = "pruned",
        sort: str = "confidence",
        min_confidence: float = 0.0,
        max_confidence: float = 1.0,
        min_burden: float | None = None,
        max_burden: float | None = None,
        packed: bool = False,
    ) -> schema.FlipsJson:
        """Test photos by who is right: `pattern` is repaired (dense right, pruned wrong, mitigated
        right), unrepaired, harmed, broken, gained, all_wrong, all_right, disagree or any, or those
        words. `pruned` and `mitigated` are ids ("none": no mitigated one), `class_name` the true
        class; confidence, burden and `sort` (confidence, unsure, burden, unburdened, kl, margin,
        position) are those `of` dense, pruned or mitigated. `photo` is there where it is packed."""
        book = self._service.flips
        named = next((key for key in (pruned, mitigated) if key not in (None, "none")), None)
        if dataset is None and named is not None:
            dataset = book.dataset_of(named)
        chapter = book.chapter(dataset)
        alone = mitigated == "none"
        ids = chapter.completed(pruned, None if alone else mitigated)
        query = Query(
            pattern=pattern,
            class_name=class_name,
            of=of,
            sort=sort,
            min_confidence=min_confidence,
            max_confidence=max_confidence,
            min_burden=min_burden,
            max_burden=max_burden,
            packed=packed,
        )
        trio = chapter.trio(ids[0], None if alone else ids[1])
        found = find(chapter, trio, query, limit=limit, offset=offset)
        return schema.flips_json(found, lambda position: schema.flip_photo(chapter, position))

    def _seen(
        self, image: Any, ids: Sequence[str] | None, *, remembered: bool = False
    ) -> tuple[Image.Image, Sequence[str]]:
        """What models see of an upload, and their ids: the photo is gone while they work.

        Only answers that are `remembered` need its digest, which for a photo of 12 megapixels takes
        as long as a prediction.
        """
        ids = self._service.default_variants() if ids is None else ids
        photo = self._service.load_image(uploaded_path(image))
        crop = self._service.crop(photo, ids)
        return gallery.reduced(photo, crop) if remembered else crop, ids

    def _burdens(
        self, photo: Image.Image, cells: Mapping[str, BurdenMaps]
    ) -> dict[str, schema.BurdenJson]:
        sheets = self._service.burden_sheets(photo, cells)
        return schema.by_id(cells, lambda maps: schema.burden_json(maps, sheets.get(maps.variant)))


def _publish(endpoint: Callable[..., Any], **limits: Any) -> None:
    signature = inspect.signature(endpoint, eval_str=True)
    required = {n for n, p in signature.parameters.items() if p.default is inspect.Parameter.empty}

    @functools.wraps(endpoint)
    def with_defaults(*values: Any) -> Any:
        # Plain HTTP has to send every value, so null stands for the default.
        given = signature.bind(*values).arguments
        for name, value in given.items():
            check_kind(name, signature.parameters[name].annotation, value)
        return endpoint(**{n: v for n, v in given.items() if v is not None or n in required})

    answer: Any = in_plain_words(with_defaults)
    # Gradio reads the return type from the signature, where it would be a string.
    answer.__signature__ = signature
    gr.api(answer, api_name=endpoint.__name__, **limits)
