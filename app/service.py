"""compare(...) -> Comparison: all that page and API can do; knows neither Gradio nor HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from app import burden, images, pictures, text
from app.ablation import LARGEST, SMALLEST, Ablated, Ablation, ablate
from app.attribution import ATTRIBUTIONS, AttributionMap, AttributionMethod, attribute
from app.benches import Bench, read_benches
from app.burden import BurdenMaps, Which
from app.catalog import VariantInfo, catalog, default_ids
from app.comparison import Comparison, Difference, against_base, difference
from app.errors import NoAnswerError, UserError
from app.flips import FlipBook
from app.inference import Prediction, Predictor, TopClass, to_prediction
from app.latency import Latency, Stopwatch
from app.parity import ParityCheck, difference_on
from app.precision import Effect, effects
from app.quantities import QUANTITIES
from app.records import Record, records
from app.registry import Model, ModelRegistry
from app.settings import Settings
from app.studies import Study, read_study, study_names
from app.task import Cells, Run, Task
from app.timeline import Timeline, read_timeline
from app.trust import Served, removal_scores

__all__ = [
    "Ablated",
    "Ablation",
    "AttributionMap",
    "AttributionMethod",
    "BurdenMaps",
    "Cells",
    "Comparison",
    "Difference",
    "Prediction",
    "Service",
    "Status",
    "TopClass",
    "VariantInfo",
    "Which",
]

DEFAULT_METHOD = "integrated_gradients"
NO_BASE_CLASS = "Its dense base cannot be used, so its own top class is explained."
MEANWHILE = ThreadPoolExecutor(8, thread_name_prefix="meanwhile")
"""On a GPU, measures burdens while gradients are taken."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where things run, and what the start-up checks found."""

    provider: str
    """What ONNX Runtime runs on: CUDAExecutionProvider or CPUExecutionProvider."""
    device: str
    """Where gradients are taken: cuda or cpu."""
    precision: str
    """What predictions are computed in."""
    effects: Mapping[str, Effect]
    """What that precision does to a variant, as far as it was measured; none for fp32."""
    parity: Mapping[str, float | None]
    """Largest |ONNX - torch| of a logit on the start-up photos by variant; None while pending."""
    refused: Mapping[str, str]
    """Why a variant is not served, by id."""
    ready: bool
    """All start-up checks are done; serving begins before."""


class Service:
    """All of the app behind the page.

    Methods raise UserError with a text for the visitor. `variants=None` means `default_variants()`;
    a variant that is refused or fails is missing from the result and named in its `failures`,
    unless none is left.
    """

    def __init__(self, registry: ModelRegistry, settings: Settings) -> None:
        self.registry = registry
        self.settings = settings
        self.predictor = Predictor(settings.device, settings.threads, settings.precision)
        self.parity = ParityCheck(registry, self.predictor)
        self.stopwatch = Stopwatch(self.predictor)
        variants = [model.variant for model in registry.models()]
        exact = settings.precision == "fp32"
        self._effects = {} if exact else effects(registry.folder, variants, settings.precision)
        self.flips = FlipBook(registry)
        self.opened = threading.Event()
        """Whoever uses torch on a GPU of its own accord waits for this: see `start_checks`."""
        if self.predictor.torch_device == "cpu":
            self.opened.set()

    @classmethod
    def from_settings(cls, settings: Settings) -> Service:
        """Read the checkpoint folder and find the device.

        Raises:
            ValueError: If nothing can be served or the device is not to be had.
        """
        return cls(ModelRegistry(settings.checkpoints), settings)

    def start_checks(self, photos: Sequence[Image.Image] = ()) -> None:
        """Compare ONNX with torch in the background, on RGB photos or on generated pictures.

        On a GPU, sessions are opened before: while one records its runs, nothing else may ask for
        the GPU's memory.
        """
        if self.predictor.torch_device != "cpu":
            for model in self.registry.models():
                try:
                    self.predictor.warm(model)
                except UserError as error:
                    self.registry.refuse(model.id, str(error))
            self.opened.set()
        self.parity.start(photos, self.default_variants())

    def wait_for_checks(self, timeout: float) -> None:
        """Return once the start-up checks are over, if they run, after at most `timeout` seconds:
        what is timed meanwhile takes longer."""
        if self.parity.running:
            self.parity.wait(timeout)

    def variants(self) -> tuple[VariantInfo, ...]:
        return catalog([model.variant for model in self.registry.models()])

    def records(self) -> tuple[Record, ...]:
        """All that is known of the served variants, their entries in the manifest included."""
        return records(self.registry.models())

    def zero_shares(self) -> Mapping[str, float | None]:
        """Share of the weights that are exactly zero by id; None where a file cannot be read."""
        return {record.id: record.zero_share for record in self.records()}

    def known_latencies(self) -> Mapping[str, Latency]:
        """What `latencies` measured before."""
        return self.stopwatch.known()

    def timeline(self, variant: str) -> Timeline:
        """Loads and budget of a variant while it trained."""
        model = self.registry[variant]
        return read_timeline(model.file("history"), model.variant)

    def latencies(self, variants: Sequence[str], *, again: bool = False) -> Mapping[str, Latency]:
        """Median time of one photo on this device by id, measured once and remembered."""
        return self.stopwatch.measure([self.registry[name] for name in variants], again=again)

    def benches(self) -> tuple[Bench, ...]:
        """Times as they were measured on other machines."""
        return read_benches(self.registry.folder)

    def study_names(self) -> tuple[str, ...]:
        """Studies whose results lie in the checkpoint folder."""
        return study_names(self.registry.folder)

    def study(self, name: str) -> Study:
        """Results of one of `study_names()`."""
        return read_study(self.registry.folder, name)

    def refused(self) -> Mapping[str, str]:
        """Why a variant is not served, by id."""
        return self.registry.refused

    def default_variants(self) -> tuple[str, ...]:
        """Ids compared when none are named: dense, `none`, `handoff` at one budget if possible."""
        return default_ids([model.variant for model in self.registry.models()])

    def attribution_methods(self) -> tuple[AttributionMethod, ...]:
        """The default one first, then by title."""
        methods = [ATTRIBUTIONS[name] for name in ATTRIBUTIONS]
        return tuple(sorted(methods, key=lambda m: (m.name != DEFAULT_METHOD, m.title)))

    def status(self) -> Status:
        return Status(
            provider=self.predictor.provider,
            device=self.predictor.torch_device,
            precision=self.predictor.serving.precision,
            effects=self._effects,
            parity=self.parity.found(),
            refused=self.registry.refused,
            ready=self.parity.done,
        )

    def load_image(self, source: str | Path | bytes | Image.Image | None) -> Image.Image:
        """Upload -> trusted RGB image of any size."""
        return images.load_image(
            source,
            max_bytes=int(self.settings.max_upload_mb * 1e6),
            max_pixels=int(self.settings.max_megapixels * 1e6),
        )

    def crop(self, image: Image.Image, variants: Sequence[str] | None = None) -> Image.Image:
        """Exactly what the models see."""
        return self._task(image, variants).crop

    def predict(
        self,
        image: Image.Image,
        variants: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        before_retraining: bool = False,
        task: Task | None = None,
    ) -> Cells[Prediction]:
        """What each variant says.

        Args:
            image: From `load_image`.
            variants: Ids.
            top_k: How many classes are named.
            before_retraining: Instead of each pruned variant, run its dense base cut live to the
                same units.
            task: An earlier one on the same photo and variants, whose answers serve again.
        """
        if not isinstance(top_k, int) or top_k < 1:
            raise UserError(f"top_k must be a whole number of at least 1, got {top_k!r}")
        task = task or self._task(image, variants)
        parity = self.parity.found()

        def one(model: Model) -> Prediction:
            output = task.run(model, before_retraining=before_retraining).output
            # A dense variant is its own base: a second run would only blur that nothing changes.
            dense = output if model.variant.base is None else task.dense(model)
            return to_prediction(model.variant, output, dense, top_k, parity.get(model.id))

        return task.each(one)

    def attribute(
        self,
        image: Image.Image,
        variants: Sequence[str] | None = None,
        method: str = DEFAULT_METHOD,
        target: str = "base",
        *,
        before_retraining: bool = False,
        task: Task | None = None,
    ) -> Cells[AttributionMap]:
        """Which patches speak for a class, how that differs from dense, and how far to trust it.

        A variant is held against its dense base if that is among the variants.

        Args:
            image: From `load_image`.
            variants: Ids.
            method: A name from `attribution_methods()`.
            target: "base" (the dense base's top class, for all), "own" (each variant's own) or a
                class name.
            before_retraining: As in `predict`.
            task: Likewise.
        """
        task = task or self._task(image, variants)
        _check_question(task, method, target)

        def one(model: Model) -> AttributionMap:
            return self._attribute(task, model, method, target, before_retraining)

        found = task.each(one)
        for model in task.models:
            if model.id in found:
                base = found.get(model.variant.base or "")
                found[model.id] = against_base(found[model.id], base)
        return pictures.with_pictures(task.crop, found)

    def burden(
        self,
        image: Image.Image,
        variants: Sequence[str] | None = None,
        quantity: str = "burden",
        live_null: bool = True,
    ) -> Cells[BurdenMaps]:
        """What each variant's layers carry.

        Args:
            image: From `load_image`.
            variants: Ids.
            quantity: "burden", "load" or "residual".
            live_null: Also measure the dense base cut live to the variant's units.
        """
        if quantity not in QUANTITIES:
            raise UserError(f"unknown quantity {quantity!r}; available: {', '.join(QUANTITIES)}")
        task = self._task(image, variants)

        def one(model: Model) -> BurdenMaps:
            return burden.measure(
                self.predictor,
                model,
                self.registry.base_of(model),
                task.pixels,
                quantity,
                live_null=live_null,
                reason=self.registry.base_problem(model),
            )

        return task.each(one)

    def ablate(
        self,
        image: Image.Image,
        variants: Sequence[str] | None = None,
        ablation: Ablation | None = None,
        top_k: int = 5,
    ) -> Ablated:
        """What the dense base of the first variant says and carries with units turned off.

        Args:
            image: From `load_image`.
            variants: Ids.
            ablation: Which units; half of each site, the smallest loads first, if not given.
            top_k: How many classes are named.
        """
        task, ablation = self._task(image, variants), ablation or Ablation()
        dense = self.registry.base_of(task.models[0])
        if dense is None:
            raise UserError(str(self.registry.base_problem(task.models[0])))
        variant = None
        if ablation.order not in (SMALLEST, LARGEST):
            variant = self.registry[ablation.order]
            if self.registry.base_of(variant) is not dense:
                raise UserError(text.ERROR_CUT_ORDER.format(order=ablation.order, dense=dense.id))
        return ablate(self.predictor, dense, task.pixels, ablation, top_k=top_k, variant=variant)

    def compare(
        self,
        image: Image.Image,
        variants: Sequence[str] | None = None,
        method: str = DEFAULT_METHOD,
        target: str = "base",
        *,
        on_burdens: Callable[[Cells[BurdenMaps]], None] = lambda found: None,
    ) -> Comparison:
        """Predictions, attributions, burdens and the differences to dense, in one answer.

        Burdens come first on a CPU and meanwhile on a GPU: side by side, both would ask for all
        cores and take longer than one after the other.

        Args:
            image: From `load_image`.
            variants: Ids.
            method: As in `attribute`.
            target: Likewise.
            on_burdens: Told the burdens as soon as they are there, in the thread that took them.
        """
        task = self._task(image, variants)
        _check_question(task, method, target)

        def measured() -> Cells[BurdenMaps]:
            try:
                found = self.burden(image, variants)
            except NoAnswerError as error:
                found = Cells(error.failures)
            on_burdens(found)
            return found

        def attributed() -> Cells[AttributionMap]:
            try:
                return self.attribute(image, variants, method, target, task=task)
            except NoAnswerError as error:
                return Cells(error.failures)

        if self.predictor.torch_device == "cpu":
            found_burdens, attributions = measured(), attributed()
        else:
            beside = MEANWHILE.submit(measured)
            try:
                attributions = attributed()
            finally:
                # Nothing goes on behind an answer, a refusal included.
                wait([beside])
            found_burdens = beside.result()
        predictions = self.predict(image, variants, task=task)
        differences = {}
        for model in task.models:
            found, dense = predictions.get(model.id), task.dense(model)
            if model.variant.base is not None and found is not None and dense is not None:
                best = model.variant.classes[int(dense.logits.argmax())]
                maps = (attributions.get(model.id), attributions.get(model.variant.base))
                differences[model.id] = difference(found, best, maps, found_burdens.get(model.id))
        return Comparison(
            image=task.crop,
            predictions=predictions,
            attributions=attributions,
            burdens=found_burdens,
            differences=differences,
            failures=attributions.failures | found_burdens.failures | predictions.failures,
        )

    def burden_pictures(
        self,
        image: Image.Image,
        burdens: Mapping[str, BurdenMaps],
        site: str,
        which: Which = "trained",
    ) -> dict[str, Image.Image]:
        """One site's heatmap by variant; all sites, variants and values of `which` share a scale.

        Args:
            image: From `load_image`.
            burdens: From `burden`.
            site: One of their `site_names`.
            which: "null" shows the dense base cut live, before retraining; variants without such
                maps are left out.
        """
        crop = self.crop(image, list(burdens))
        return pictures.of_site(crop, burdens, site, which)

    def burden_sheets(
        self, image: Image.Image, burdens: Mapping[str, BurdenMaps], which: Which = "trained"
    ) -> dict[str, Image.Image]:
        """All sites of each variant in one picture, small, on the scale of `burden_pictures`."""
        return pictures.sheets(self.crop(image, list(burdens)), burdens, which)

    def burden_legend(
        self, burdens: Mapping[str, BurdenMaps], which: Which = "trained"
    ) -> Image.Image:
        """Colour bar of the burden pictures."""
        return pictures.burden_legend(burdens, which)

    def attribution_legend(self, attributions: Mapping[str, AttributionMap]) -> Image.Image:
        """Colour bar of the pictures of one `attribute` call."""
        return pictures.attribution_legend(attributions)

    def difference_legend(self, attributions: Mapping[str, AttributionMap]) -> Image.Image:
        """Colour bar of the difference pictures of one `attribute` call."""
        return pictures.difference_legend(attributions)

    def _task(self, image: Image.Image, variants: Sequence[str] | None) -> Task:
        ids = self.default_variants() if variants is None else variants
        return Task.of(self.registry, self.predictor, image, ids)

    def _attribute(
        self, task: Task, model: Model, method: str, target: str, before_retraining: bool
    ) -> AttributionMap:
        run = task.run(model, before_retraining=before_retraining)
        dense = task.dense(model) if target == "base" else None
        classes, entry = model.variant.classes, ATTRIBUTIONS[method]
        if target in classes:
            index = classes.index(target)
        else:
            index = int((run.output if dense is None else dense).logits.argmax())
        notes = [NO_BASE_CLASS] if target == "base" and dense is None else []
        if run.output.group is not None and entry.note:
            notes.append(entry.note)
        found = attribute(
            run.model,
            self.predictor,
            task.pixels,
            entry,
            index,
            group=run.output.group,
            unit_gate=run.gate,
        )
        return AttributionMap(
            variant=model.id,
            method=method,
            target=classes[index],
            values=found.patches,
            signed=entry.signed,
            completeness_error=found.completeness_error,
            steps=found.steps,
            removal=removal_scores(
                lambda images: self.predictor.logits(run.model, images, run.gate),
                task.pixels,
                found.patches,
                index,
                model.variant.patch_size,
            ),
            served=self._served(task, run),
            groups=None
            if run.output.group is None
            else run.output.group.reshape(model.variant.grid),
            note=" ".join(notes) or None,
        )

    def _served(self, task: Task, run: Run) -> Served:
        """The file that answered, held against its twin on this photo."""
        device = self.predictor.torch_device
        return Served(
            provider=run.output.provider,
            sha256=run.model.variant.files["onnx"].sha256,
            difference=difference_on(run.model, task.pixels, run.output, device, run.gate),
        )


def _check_question(task: Task, method: str, target: str) -> None:
    """Refuse what `attribute` has no answer to, before anything is computed.

    Raises:
        UserError: If the method or the target is not to be had.
    """
    if method not in ATTRIBUTIONS:
        raise UserError(f"unknown method {method!r}; available: {', '.join(ATTRIBUTIONS)}")
    classes = task.models[0].variant.classes
    if target not in ("base", "own", *classes):
        raise UserError(f"unknown target {target!r}; available: base, own, {', '.join(classes)}")
