"""What the page and the API may ask for, and what they hear when it cannot be had."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from app import gradients, parity, pictures, render
from app.attribution import ATTRIBUTIONS
from app.catalog import catalog, default_ids
from app.comparison import difference
from app.errors import UserError
from app.path_integral import integrate
from app.question import Found, Question
from app.registry import Model
from app.service import AttributionMap, Prediction, Service, TopClass
from app.settings import Settings
from app.task import Cells
from app.trust import Served, removal_scores
from app.turns import GRADIENTS
from nbcore.checkpoint import Variant, read_manifest
from nbcore.preprocessing import preprocess, to_array
from tests.app.folders import (
    copy_of,
    edit_variant,
    flip_byte,
    ids_by_mitigation,
    register_again,
)


def serve(folder: Path) -> Service:
    return Service.from_settings(Settings(checkpoints=folder, device="cpu", threads=1))


@pytest.fixture(scope="module")
def service(tiny_checkpoints: Path) -> Service:
    return serve(tiny_checkpoints)


@pytest.fixture
def folder(tiny_checkpoints: Path, tmp_path: Path) -> Iterator[Path]:
    return copy_of(tiny_checkpoints, tmp_path)


@pytest.fixture(scope="module")
def ids(tiny_checkpoints: Path) -> dict[str, str]:
    return ids_by_mitigation(tiny_checkpoints)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    coarse = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC)


def test_the_menu_tells_what_the_manifest_says(
    service: Service, tiny_checkpoints: Path, ids: dict[str, str]
) -> None:
    manifest = {v.id: v for v in read_manifest(tiny_checkpoints).variants}
    for info in service.variants():
        variant = manifest[info.id]
        assert info.size_bytes == (tiny_checkpoints / info.id / "model.onnx").stat().st_size
        assert info.macs_ratio == variant.macs_ratio
        assert info.site_names == tuple(site.name for site in variant.sites)
        assert info.is_default == (info.id in service.default_variants())
    titles = {info.id: info.title for info in service.variants()}
    share = f"{manifest[ids['none']].macs_ratio:.0%}".replace("%", " %")
    assert titles[ids["dense"]] == "dense"
    assert titles[ids["none"]] == f"{share} MACs, no mitigation"
    assert service.default_variants() == (ids["dense"], ids["none"], ids["handoff"])


def test_titles_and_defaults_of_larger_sets(tiny_checkpoints: Path, ids: dict[str, str]) -> None:
    manifest = read_manifest(tiny_checkpoints)

    def pruned(name: str, pruner: str, mitigation: str, ratio: float) -> Variant:
        entry = manifest[ids["none"]]
        return replace(entry, id=name, pruner=pruner, mitigation=mitigation, macs_ratio=ratio)

    dense = manifest[ids["dense"]]
    variants = [
        pruned("a", "taylor", "none", 0.249),
        dense,
        pruned("b", "taylor", "none", 0.499),
        pruned("c", "magnitude", "handoff", 0.499),
        pruned("d", "taylor", "handoff", 0.494),
        pruned("e", "magnitude", "none", 0.499),
        pruned("f", "magnitude", "none", 0.5),
    ]
    assert default_ids(variants) == (dense.id, "b", "d")
    assert default_ids(variants[:3]) == (dense.id, "a", "b")
    assert default_ids([variants[0], variants[2]]) == ("a", "b")
    assert default_ids([]) == ()
    titles = {info.id: info.title for info in catalog(variants)}
    assert titles == {
        "a": "taylor 25 % MACs, no mitigation",
        dense.id: "dense",
        "b": "taylor 50 % MACs, no mitigation",
        "c": "magnitude 50 % MACs, handoff",
        "d": "taylor 49 % MACs, handoff",
        "e": "e",
        "f": "f",
    }
    # One host: its name would tell nothing.
    alone = {info.id: info.title for info in catalog([dense, variants[0], variants[4]])}
    assert alone["a"] == "25 % MACs, no mitigation"
    assert alone["d"] == "49 % MACs, handoff"


def test_all_see_the_same_crop(service: Service, photo: Image.Image) -> None:
    variant = service.registry.models()[0].variant
    wanted = preprocess(photo, variant.img_size, variant.preprocessing.crop_pct)
    assert np.array_equal(np.asarray(service.crop(photo)), np.asarray(wanted))


def test_predictions_are_those_of_the_graphs(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    image = to_array(service.crop(photo))
    order = [ids["handoff"], ids["dense"], ids["none"]]
    found = service.predict(photo, [*order, ids["dense"]], top_k=3)
    assert list(found) == order
    assert found.failures == {}
    base = service.predictor.run(service.registry[ids["dense"]], image).probs
    for key, cell in found.items():
        probs = service.predictor.run(service.registry[key], image).probs
        classes = service.registry[key].variant.classes
        best = np.argsort(-probs)[:3]
        assert [c.class_name for c in cell.top] == [classes[k] for k in best]
        assert [c.prob for c in cell.top] == pytest.approx(probs[best])
        assert [c.change for c in cell.top] == pytest.approx(probs[best] - base[best])
        wanted = (base * np.log(base / probs)).sum()
        assert cell.kl_to_base == pytest.approx(wanted, abs=1e-9)
        assert cell.base_class == classes[base.argmax()]


def test_before_retraining_is_dense_cut_live(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    image = to_array(service.crop(photo))
    dense, pruned = service.registry[ids["dense"]], service.registry[ids["none"]]
    gate = np.zeros(dense.variant.num_units, np.float32)
    gate[pruned.variant.kept_in_base()] = 1
    wanted = service.predictor.run(dense, image, gate).probs
    before = service.predict(photo, [ids["dense"], ids["none"]], 99, before_retraining=True)
    found = {c.class_name: c.prob for c in before[ids["none"]].top}
    assert found == pytest.approx(dict(zip(dense.variant.classes, wanted.tolist(), strict=True)))
    assert before[ids["dense"]].top == service.predict(photo, [ids["dense"]], 99)[ids["dense"]].top
    # Two variants of the same survivors are one model before retraining.
    maps = service.attribute(photo, [ids["none"]], "saliency", before_retraining=True)
    trained = service.attribute(photo, [ids["none"]], "saliency")
    assert maps[ids["none"]].target == trained[ids["none"]].target
    assert np.abs(maps[ids["none"]].values - trained[ids["none"]].values).max() > 0


def test_targets(service: Service, photo: Image.Image, ids: dict[str, str]) -> None:
    every = list(ids.values())
    tops = {k: cell.top[0].class_name for k, cell in service.predict(photo, every).items()}
    base = service.attribute(photo, every, "saliency")
    assert {cell.target for cell in base.values()} == {tops[ids["dense"]]}
    own = service.attribute(photo, every, "saliency", "own")
    assert {k: cell.target for k, cell in own.items()} == tops
    name = service.variants()[0].classes[-1]
    chosen = service.attribute(photo, every, "saliency", name)
    assert {cell.target for cell in chosen.values()} == {name}
    same = name == tops[ids["dense"]]
    assert np.array_equal(chosen[every[0]].values, base[every[0]].values) == same


def test_notes_say_what_the_reader_must_know(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    found = service.attribute(photo, list(ids.values()), "saliency")
    assert "merges were held together" in str(found[ids["token_merging"]].note)
    assert found[ids["none"]].note is found[ids["dense"]].note is None


def test_maps_are_held_against_the_dense_models(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    every = list(ids.values())
    found = service.attribute(photo, every, "input_x_gradient")
    base = found[ids["dense"]]
    assert (base.difference, base.rank_correlation, base.top_overlap) == (None, None, None)
    assert base.difference_picture is None
    for name in ("none", "handoff", "token_merging"):
        cell = found[ids[name]]
        assert cell.difference is not None
        assert np.array_equal(cell.difference, cell.values - base.values)
        assert cell.rank_correlation == spearmanr(cell.values.ravel(), base.values.ravel())[0]
        assert cell.top_overlap is not None
        assert 0 <= cell.top_overlap <= 1
    # Without dense, or with dense explained for another class, there is nothing to subtract.
    assert service.attribute(photo, every[1:], "saliency")[every[1]].difference is None
    own = service.attribute(photo, every, "saliency", "own")
    targets = {key: cell.target for key, cell in own.items()}
    for key in every[1:]:
        same = targets[key] == targets[ids["dense"]]
        assert (own[key].difference is not None) == same


def test_differences_share_a_scale(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    found = service.attribute(photo, list(ids.values()), "saliency")
    scale = pictures.difference_scale(found)
    assert scale.low == -scale.high
    crop = service.crop(photo)
    for key, cell in found.items():
        if key != ids["dense"]:
            assert cell.difference is not None
            wanted = render.heatmap(crop, cell.difference, scale, groups=cell.groups)
            assert np.array_equal(np.asarray(cell.difference_picture), np.asarray(wanted))


@pytest.mark.parametrize("before", [False, True])
def test_every_map_says_which_file_was_explained(
    service: Service, photo: Image.Image, ids: dict[str, str], before: bool
) -> None:
    found = service.attribute(photo, list(ids.values()), "saliency", before_retraining=before)
    image = to_array(service.crop(photo))
    for key, cell in found.items():
        ran = service.registry[ids["dense"] if before else key]
        assert cell.served.sha256 == ran.variant.files["onnx"].sha256
        assert cell.served.provider == "CPUExecutionProvider"
        # Rounding differs between the two runtimes, so an exact zero would be no comparison.
        assert 0 < cell.served.difference < 1e-4
    dense = service.registry[ids["dense"]]
    output = service.predictor.run(dense, image)
    with dense.twin() as twin, torch.no_grad():
        logits = twin.model(torch.from_numpy(image)[None])[0].numpy()
    wanted = float(np.abs(logits - output.logits).max())
    assert found[ids["dense"]].served.difference == wanted


def test_removal_scores_are_of_the_model_that_is_explained(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    found = service.attribute(photo, [ids["dense"], ids["none"]], "saliency")
    image = to_array(service.crop(photo))
    for key, cell in found.items():
        model = service.registry[key]
        index = model.variant.classes.index(cell.target)

        def served(images: np.ndarray, model: Model = model) -> np.ndarray:
            runs = [service.predictor.run(model, each).logits for each in images]
            return np.stack(runs)

        wanted = removal_scores(served, image, cell.values, index, model.variant.patch_size)
        assert wanted is not None
        assert cell.removal is not None
        assert cell.removal.deletion == pytest.approx(wanted.deletion, abs=1e-6)
        assert cell.removal.insertion == pytest.approx(wanted.insertion, abs=1e-6)


def plant(monkeypatch: pytest.MonkeyPatch, service: Service, failing: set[str]) -> None:
    """Make saliency fail on some variants."""
    entry = ATTRIBUTIONS["saliency"]
    twins = []
    for key in failing:
        with service.registry[key].twin() as twin:
            twins.append(twin.model)

    def compute(question: Question) -> Found:
        if any(question.model is twin for twin in twins):
            raise RuntimeError("planted")
        return entry.compute(question)

    monkeypatch.setitem(ATTRIBUTIONS._entries, "saliency", replace(entry, compute=compute))


def test_a_failing_method_takes_down_its_own_cell_only(
    service: Service, photo: Image.Image, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    three = [ids["dense"], ids["none"], ids["handoff"]]
    whole = service.attribute(photo, three, "saliency")
    plant(monkeypatch, service, {ids["none"]})
    found = service.attribute(photo, three, "saliency")
    assert list(found) == [ids["dense"], ids["handoff"]]
    assert found.failures == {ids["none"]: f"{ids['none']} failed; the server's log says why."}
    for key, cell in found.items():
        assert np.array_equal(cell.values, whole[key].values)
        assert cell.rank_correlation == whole[key].rank_correlation


def test_a_method_that_fails_everywhere_leaves_the_other_answers(
    service: Service, photo: Image.Image, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [ids["dense"], ids["none"]]
    plant(monkeypatch, service, set(two))
    found = service.compare(photo, two, "saliency")
    assert (list(found.predictions), list(found.burdens)) == (two, two)
    assert found.attributions == {}
    assert set(found.failures) == set(two)
    assert found.differences[ids["none"]].attribution_rank_correlation is None
    with pytest.raises(UserError, match="failed; the server's log says why"):
        service.attribute(photo, two, "saliency")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("question", [("magic", "base"), ("saliency", "nonsense")])
def test_a_comparison_that_is_refused_measures_nothing(
    device: str,
    question: tuple[str, str],
    service: Service,
    photo: Image.Image,
    ids: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(service.predictor, "torch_device", device)
    monkeypatch.setattr(service, "burden", lambda *_: asked.append("burden"))
    with pytest.raises(UserError, match=f"unknown .*{question[0]}|unknown .*{question[1]}"):
        service.compare(photo, [ids["none"]], *question)
    assert asked == []


def test_nothing_goes_on_behind_a_comparison_that_fails(
    service: Service, photo: Image.Image, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, where burdens are measured while gradients are taken.
    began, ended = threading.Event(), threading.Event()

    def burden(*_: object) -> object:
        began.set()
        ended.wait(0.3)
        ended.set()
        return {}

    def attribute(*_: object, **__: object) -> object:
        began.wait(30)
        raise RuntimeError("planted")

    for name, own in (("burden", burden), ("attribute", attribute)):
        monkeypatch.setattr(service, name, own)
    monkeypatch.setattr(service.predictor, "torch_device", "cuda")
    with pytest.raises(RuntimeError, match="planted"):
        service.compare(photo, [ids["none"]], "saliency")
    assert ended.is_set()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_burdens_are_measured_beside_gradients_on_a_gpu_only(
    device: str,
    service: Service,
    photo: Image.Image,
    ids: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []

    def burden(*_: object) -> Cells[object]:
        threads.append(threading.current_thread())
        return Cells({"of": "burden"})

    monkeypatch.setattr(service, "burden", burden)
    monkeypatch.setattr(service, "attribute", lambda *_, **__: Cells({"of": "attribution"}))
    monkeypatch.setattr(service.predictor, "torch_device", device)
    found = service.compare(photo, [ids["none"]], "saliency")
    assert found.failures == {"of": "burden"}
    assert list(found.predictions) == [ids["none"]]
    assert (threads == [threading.current_thread()]) == (device == "cpu")


def test_burdens_are_told_as_soon_as_they_are_there(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    told: list[object] = []
    found = service.compare(photo, [ids["none"]], "saliency", on_burdens=told.append)
    assert told == [found.burdens]


def test_pictures_of_one_call_share_a_scale(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    found = service.attribute(photo, [ids["dense"], ids["none"]], "saliency")
    alone = service.attribute(photo, [ids["none"]], "saliency")
    beside, single = found[ids["none"]].picture, alone[ids["none"]].picture
    assert found[ids["none"]].values.tolist() == alone[ids["none"]].values.tolist()
    assert np.asarray(beside).tolist() != np.asarray(single).tolist()
    burdens = service.burden(photo, [ids["dense"], ids["none"]])
    site = burdens[ids["none"]].site_names[1]
    for which in ("trained", "null"):
        maps = service.burden_pictures(photo, burdens, site, which)
        sheets = service.burden_sheets(photo, burdens, which)
        assert set(maps) == set(sheets) == set(burdens)
    # Dense carries what it carries, on the scale of whatever it is shown beside.
    grey = np.asarray(service.burden_pictures(photo, burdens, site)[ids["dense"]]).astype(int)
    assert np.ptp(grey, axis=-1).max() <= 1
    with pytest.raises(UserError, match=r"unknown site 'x'; available: blocks\.0\.attn, "):
        service.burden_pictures(photo, burdens, "x")


def test_merged_patches_are_outlined_where_they_are_merged(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    burdens = service.burden(photo, [ids["token_merging"]])
    cell, scale = burdens[ids["token_merging"]], pictures.burden_scale(burdens)
    crop = service.crop(photo)
    assert cell.maps is not None
    for site, groups in ((0, None), (-1, cell.groups[-1])):
        found = service.burden_pictures(photo, burdens, cell.site_names[site])
        wanted = render.heatmap(crop, cell.maps[site], scale, groups=groups)
        assert np.array_equal(np.asarray(found[cell.variant]), np.asarray(wanted))
    plain = render.heatmap(crop, cell.maps[-1], scale)
    assert not np.array_equal(np.asarray(wanted), np.asarray(plain))
    legends = [
        service.burden_legend(burdens),
        service.burden_legend(burdens, "null"),
        render.legend(scale, pictures.MERGED_NOTE),
        render.legend(scale, pictures.NULL_NOTE),
    ]
    trained, null, merged_note, null_note = (np.asarray(legend) for legend in legends)
    assert np.array_equal(trained, merged_note)
    assert np.array_equal(null, null_note)


def test_a_difference_by_hand() -> None:
    def shown(target: str, *values: float) -> AttributionMap:
        return AttributionMap(
            variant="v",
            method="saliency",
            target=target,
            values=np.array([values]),
            signed=True,
            completeness_error=None,
            steps=None,
            removal=None,
            served=Served(provider="", sha256="", difference=0.0),
            rank_correlation=0.5,
            top_overlap=0.25,
        )

    prediction = Prediction(
        variant="v",
        top=(TopClass(class_name="cat", prob=0.6, change=0.1),),
        kl_to_base=0.25,
        base_class="dog",
        provider="",
        latency_ms=1.0,
        parity=None,
    )
    # (3, 4) . (4, 3) / (5 * 5) = 24 / 25
    found = difference(prediction, "dog", (shown("cat", 3, 4), shown("cat", 4, 3)), None)
    assert found.attribution_cosine == pytest.approx(0.96)
    assert (found.attribution_rank_correlation, found.attribution_top_overlap) == (0.5, 0.25)
    assert (found.same_class, found.kl_to_base) == (False, 0.25)
    assert (found.largest_burden, found.largest_burden_site) == (None, None)
    for maps in (
        (shown("cat", 3, 4), shown("dog", 4, 3)),
        (shown("cat", 0, 0), shown("cat", 4, 3)),
        (shown("cat", 3, 4), None),
    ):
        assert difference(prediction, "cat", maps, None).attribution_cosine is None


def test_a_comparison_is_its_parts(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    every = list(ids.values())
    found = service.compare(photo, every, "saliency")
    burdens = service.burden(photo, every)
    maps = service.attribute(photo, every, "saliency")
    assert np.array_equal(np.asarray(found.image), np.asarray(service.crop(photo)))
    assert found.failures == {}
    assert set(found.differences) == set(every) - {ids["dense"]}
    base = maps[ids["dense"]].values.ravel()
    top = found.predictions[ids["dense"]].top[0].class_name
    for key, cell in found.differences.items():
        assert cell.same_class == (found.predictions[key].top[0].class_name == top)
        assert cell.kl_to_base == found.predictions[key].kl_to_base
        values = maps[key].values.ravel()
        cosine = values @ base / np.sqrt((values @ values) * (base @ base))
        assert cell.attribution_cosine == pytest.approx(cosine)
        assert cell.attribution_rank_correlation == maps[key].rank_correlation
        assert cell.attribution_top_overlap == maps[key].top_overlap
        assert cell.largest_burden == max(burdens[key].values)  # type: ignore[type-var]
        index = burdens[key].values.index(cell.largest_burden)
        assert cell.largest_burden_site == burdens[key].site_names[index]
    without = service.compare(photo, [ids["none"]], "saliency").differences[ids["none"]]
    assert without.attribution_cosine is None
    assert without.kl_to_base == found.differences[ids["none"]].kl_to_base


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s, p: s.predict(p, ["nope"]), "unknown variant 'nope'; available: "),
        (lambda s, p: s.predict(p, []), "Choose at least one variant."),
        (lambda s, p: s.predict(p, top_k=0), "top_k must be a whole number of at least 1, got 0"),
        (lambda s, p: s.attribute(p, method="x"), "unknown method 'x'; available: attention_roll"),
        (lambda s, p: s.attribute(p, target="cat"), "unknown target 'cat'; available: base, own, "),
        (lambda s, p: s.burden(p, quantity="x"), "unknown quantity 'x'; available: burden, load"),
        (lambda s, p: s.load_image(b"x"), "not a picture"),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_right(
    service: Service,
    photo: Image.Image,
    call: object,
    said: str,
) -> None:
    with pytest.raises(UserError) as caught:
        call(service, photo)  # type: ignore[operator]
    assert said in str(caught.value)


def test_limits_of_uploads_are_the_settings(tiny_checkpoints: Path, tmp_path: Path) -> None:
    strict = Service.from_settings(
        Settings(
            checkpoints=tiny_checkpoints, device="cpu", max_upload_mb=0.001, max_megapixels=0.01
        )
    )
    path = tmp_path / "photo.bmp"
    Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(UserError, match=r"at most 0\.001 MB"):
        strict.load_image(path)
    with pytest.raises(UserError, match=r"at most 0\.01 megapixels"):
        strict.load_image(Image.new("RGB", (101, 100)))
    assert strict.load_image(Image.new("RGB", (100, 100))).size == (100, 100)


def test_a_damaged_variant_fails_alone(
    folder: Path, photo: Image.Image, ids: dict[str, str]
) -> None:
    flip_byte(folder / ids["handoff"] / "model.onnx")
    service = serve(folder)
    assert set(service.refused()) == {ids["handoff"]}
    assert service.default_variants() == (ids["dense"], ids["none"], ids["token_merging"])
    found = service.predict(photo, [ids["dense"], ids["handoff"]])
    assert list(found) == [ids["dense"]]
    assert "sha256" in found.failures[ids["handoff"]]
    with pytest.raises(UserError, match=f"{ids['handoff']} is not served: .*sha256"):
        service.predict(photo, [ids["handoff"]])


def test_without_its_base_a_variant_predicts_without_burden(
    folder: Path, photo: Image.Image, ids: dict[str, str]
) -> None:
    flip_byte(folder / ids["dense"] / "model.safetensors")
    service = serve(folder)
    found = service.compare(photo, [ids["none"]], "saliency")
    prediction = found.predictions[ids["none"]]
    assert prediction.kl_to_base is prediction.base_class is None
    assert prediction.top[0].change is None
    assert found.burdens[ids["none"]].maps is None
    assert "dense base cannot be used" in str(found.burdens[ids["none"]].reason)
    assert found.attributions[ids["none"]].target == prediction.top[0].class_name
    assert "its own top class is explained" in str(found.attributions[ids["none"]].note)
    assert found.differences == {}
    assert service.burden_sheets(photo, found.burdens) == {}
    with pytest.raises(UserError, match="cannot be shown before retraining: its dense base"):
        service.predict(photo, [ids["none"]], before_retraining=True)


def test_a_file_that_vanishes_fails_its_own_cell(
    folder: Path, photo: Image.Image, ids: dict[str, str]
) -> None:
    service = serve(folder)
    (folder / ids["none"] / "model.safetensors").unlink()
    found = service.attribute(photo, [ids["dense"], ids["none"]], "saliency")
    assert list(found) == [ids["dense"]]
    assert "changed on disk since the start" in found.failures[ids["none"]]


def test_an_unforeseen_error_fails_its_own_cell_without_details(
    service: Service, photo: Image.Image, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = service.predictor.answer

    def fail(model: object, *args: object, **kwargs: object) -> object:
        if model is service.registry[ids["none"]]:
            raise RuntimeError("secret path /x")
        return answer(model, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(service.predictor, "answer", fail)
    found = service.predict(photo, [ids["dense"], ids["none"]])
    assert found.failures == {ids["none"]: f"{ids['none']} failed; the server's log says why."}
    assert list(found) == [ids["dense"]]


def test_variants_of_different_kinds_are_not_compared(
    folder: Path, photo: Image.Image, ids: dict[str, str]
) -> None:
    edit_variant(folder, ids["handoff"], lambda e: e.update(dataset="other"))
    with pytest.raises(UserError, match="they differ in dataset; choose variants of one dataset"):
        serve(folder).predict(photo, [ids["dense"], ids["handoff"]])


def test_parity_is_pending_then_told(service: Service, ids: dict[str, str]) -> None:
    if not service.status().ready:
        assert set(service.status().parity.values()) == {None}
    service.start_checks()
    assert service.parity.wait(120)
    status = service.status()
    assert status.ready
    assert set(status.parity) == set(ids.values())
    assert all(value is not None and value <= 1e-4 for value in status.parity.values())
    assert (status.provider, status.device) == ("CPUExecutionProvider", "cpu")
    shown = service.predict(Image.new("RGB", (40, 40)))
    assert {cell.parity for cell in shown.values()} <= set(status.parity.values())


def test_weights_of_another_model_are_found_out(folder: Path, ids: dict[str, str]) -> None:
    path = folder / ids["none"] / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("head.weight"))
    save_file({**weights, name: weights[name] * 1.1}, path)
    register_again(folder, ids["none"], "weights")
    service = serve(folder)
    assert ids["none"] in {info.id for info in service.variants()}
    service.start_checks([Image.new("RGB", (64, 64), (200, 30, 30))])
    assert service.parity.wait(120)
    assert set(service.refused()) == {ids["none"]}
    assert "ONNX and torch logits differ by" in service.refused()[ids["none"]]


def test_weights_that_do_not_fit_are_found_out(folder: Path, ids: dict[str, str]) -> None:
    path = folder / ids["handoff"] / "model.safetensors"
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path)
    register_again(folder, ids["handoff"], "weights")
    service = serve(folder)
    service.start_checks()
    assert service.parity.wait(120)
    assert "start-up check failed" in service.refused()[ids["handoff"]]
    assert len(service.variants()) == 3


def test_an_error_in_one_check_leaves_no_other_unchecked(
    tiny_checkpoints: Path, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, measured = serve(tiny_checkpoints), parity.largest_difference
    broken = service.default_variants()[0]

    def failing(predictor: Any, model: Model, photos: Any) -> float:
        if model.id == broken:
            raise KeyError("gate")
        return measured(predictor, model, photos)

    monkeypatch.setattr(parity, "largest_difference", failing)
    service.start_checks()
    assert service.parity.wait(120)
    assert service.refused() == {
        broken: f"variant {broken}: its start-up check failed: KeyError('gate')"
    }
    assert None not in service.status().parity.values()
    assert set(service.status().parity) == set(ids.values()) - {broken}


def test_nobody_waits_for_the_comparison_of_another(
    service: Service, photo: Image.Image, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every, at_work, may_go_on = list(ids.values()), threading.Event(), threading.Event()

    def held_up(*arguments: Any) -> Any:
        with GRADIENTS["cpu"].one():
            at_work.set()
            assert may_go_on.wait(60)
        return integrate(*arguments)

    monkeypatch.setattr(gradients, "integrate", held_up)
    maps: list[object] = []
    slow = threading.Thread(target=lambda: maps.append(service.attribute(photo, every)))
    slow.start()
    assert at_work.wait(60)
    found, burdens = service.predict(photo, every), service.burden(photo, every)
    assert (list(found), list(burdens), maps) == (every, every, [])
    may_go_on.set()
    slow.join(120)
    assert list(maps[0]) == every  # type: ignore[call-overload]


def test_numbers_do_not_change_under_load(
    service: Service, photo: Image.Image, ids: dict[str, str]
) -> None:
    every = list(ids.values())

    def numbers() -> list[float]:
        # Methods that hook the twins, draw random numbers, and run the files that predict too.
        names = ("grad_cam", "smoothgrad", "occlusion")
        maps = [service.attribute(photo, every, name) for name in names]
        tops = service.predict(photo, every)
        burdens = service.burden(photo, every, "residual")
        answers = [
            *(cell.values.ravel() for found in maps for cell in found.values()),
            *([top.prob for top in cell.top] for cell in tops.values()),
            *(cell.values for cell in burdens.values()),
        ]
        return [float(value) for answer in answers for value in answer]

    wanted, found = numbers(), []
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait()
        found.append(numbers())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    # Photos that run together are summed in another order, which is all that may differ.
    for each in found:
        np.testing.assert_allclose(each, wanted, rtol=1e-3, atol=1e-6)
