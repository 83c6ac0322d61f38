"""The ONNX graph against torch: batches, gates, live pruning, half storage, refusals."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

import nbcore.export as export_module
from nbcore.burden import MeteredViT, calibrate
from nbcore.compact import compact, kept_units
from nbcore.config import Merge
from nbcore.export import export, open_session, round_to_half
from nbcore.parity import TOLERANCE, ExportError, differences
from nbcore.preprocessing import as_input
from nbcore.vit import PrunableViT
from tests.nbcore.tiny import AVERAGED, tiny

PHOTOS = torch.randint(
    256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
)


def rounded(model: PrunableViT) -> MeteredViT:
    """A model as it is exported: single precision, half weights, calibrated."""
    twin = MeteredViT(model.float(), [torch.zeros(0)] * len(model.sites))
    round_to_half(twin)
    return MeteredViT(model, calibrate(model, [as_input(PHOTOS)])).eval().requires_grad_(False)


class Exported:
    """A model, its file and a session on it."""

    def __init__(self, model: PrunableViT, folder: Path) -> None:
        self.metered = rounded(model)
        self.path = folder / "model.onnx"
        self.parity = export(self.metered, self.path, PHOTOS, name="tests-tiny")
        self.session = open_session(self.path)

    def run(self, **feeds: Tensor) -> list[Tensor]:
        arrays = {name: value.float().numpy() for name, value in feeds.items()}
        return [torch.from_numpy(value) for value in self.session.run(None, arrays)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A class token, a register, LayerScale and a convolutional stem."""
    model = tiny(stem="conv", reg_tokens=1, init_values=0.5)
    # Folding is part of compaction; nothing is removed.
    return Exported(
        compact(model, torch.ones(model.num_units)), tmp_path_factory.mktemp("dense") / "new"
    )


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A compact model with merging and widths that differ by block."""
    model = tiny(merge=Merge(block=1, r=6), **AVERAGED)
    keep = torch.arange(model.num_units) % 3 != 0
    return Exported(compact(model, keep), tmp_path_factory.mktemp("merged"))


@pytest.fixture(params=["dense", "merged"])
def exported(request: pytest.FixtureRequest) -> Exported:
    return request.getfixturevalue(request.param)


def alike(found: list[Tensor], twin: MeteredViT, image: Tensor, *gates: Tensor | None) -> None:
    """Assert parity with a model in double precision, given equal matches, as `Parity` does."""
    reference = copy.deepcopy(twin).double()
    group = found[4] if len(found) > 4 else None
    doubles = [None if gate is None else gate.double() for gate in gates]
    wanted = reference(image.double(), *doubles, group=group)
    assert len(found) == len(wanted)
    sizes = [site.num_units for site in twin.model.sites]
    logits, loads, _ = differences([one.double() for one in found[:4]], wanted[:4], sizes)
    assert logits <= TOLERANCE
    assert loads <= TOLERANCE


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("rows", ["defaults", "one", "each"])
def test_the_graph_equals_torch(exported: Exported, batch: int, rows: str) -> None:
    image = as_input(PHOTOS[:batch])
    generator = torch.Generator().manual_seed(batch)
    units, count = exported.metered.model.num_units, 1 if rows == "one" else batch
    gates: dict[str, Tensor] = {}
    if rows != "defaults":
        gates["unit_gate"] = torch.rand(count, units, generator=generator) * 2 - 0.5
        gates["unit_keep"] = (torch.rand(count, units, generator=generator) > 0.5).float()
    found = exported.run(image=image, **gates)
    alike(found, exported.metered, image, *gates.values())
    if len(found) > 4:
        assert torch.equal(found[4], exported.metered(image, *gates.values())[4])


def test_one_gate_alone_can_be_fed(exported: Exported) -> None:
    image, units = as_input(PHOTOS[:2]), exported.metered.model.num_units
    keep = (torch.arange(units) % 2 == 0)[None].float()
    alike(exported.run(image=image, unit_keep=keep), exported.metered, image, None, keep)
    alike(exported.run(image=image, unit_gate=keep), exported.metered, image, keep)


def test_pruning_the_dense_graph_live_gives_the_cut_model(dense: Exported) -> None:
    model = dense.metered.model
    keep = torch.arange(model.num_units) % 3 != 1
    kept = kept_units(model, keep)
    means = [mean[units] for mean, units in zip(dense.metered.means, kept, strict=True)]
    cut = MeteredViT(compact(model, keep), means).requires_grad_(False)
    image, gate = as_input(PHOTOS[:3]), keep[None].float()
    found = dense.run(image=image, unit_gate=gate, unit_keep=gate)
    found[1] = found[1][:, keep]
    alike(found, cut, image)


def test_maps_are_given_on_the_original_grid(merged: Exported) -> None:
    loads, group = merged.run(image=as_input(PHOTOS[:4]))[2::2]
    assert loads.shape == (4, 4, 16)
    assert group.dtype == torch.int64
    for one, carrier in zip(loads, group, strict=True):
        assert sorted(set(carrier.tolist())) == list(range(10))
        first = torch.tensor([carrier.tolist().index(t) for t in carrier.tolist()])
        # Behind the merge (sites 2 and 3) patches of one token share its load, before they do not.
        assert torch.equal(one[2:], one[2:, first])
        assert not torch.equal(one[:2], one[:2, first])


def test_the_file_states_its_units_and_grid(exported: Exported) -> None:
    sizes = [site.num_units for site in exported.metered.model.sites]
    stated = exported.session.get_modelmeta().custom_metadata_map
    assert stated["variant"] == "tests-tiny"
    assert stated["num_units"] == str(sum(sizes))
    assert json.loads(stated["site_sizes"]) == sizes
    assert json.loads(stated["grid"]) == [4, 4]
    assert json.loads(stated["site_names"])[:2] == ["blocks.0.attn", "blocks.0.mlp"]
    assert [i.name for i in exported.session.get_inputs()] == ["image"]
    # Gates may have one row for all images: their batch is not that of the image.
    assert [i.shape for i in exported.session.get_inputs()] == [["batch", 3, 32, 32]]
    optional = {i.name: i.shape for i in exported.session.get_overridable_initializers()}
    assert optional == {
        "unit_gate": ["unit_gate_batch", sum(sizes)],
        "unit_keep": ["unit_keep_batch", sum(sizes)],
    }
    outputs = ["logits", "unit_load", "token_load", "stream"]
    merging = exported.metered.model.merge is not None
    names = [o.name for o in exported.session.get_outputs()]
    assert names == outputs + (["token_group"] if merging else [])


def test_half_storage_changes_no_bit(exported: Exported, tmp_path: Path) -> None:
    """The same graph with single-precision weights gives the same bits."""
    graph = onnx.load(exported.path)
    halves = {
        t.name: numpy_helper.to_array(t)
        for t in graph.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT16
    }
    weights = [p for p in exported.metered.model.parameters() if p.numel() >= 64]
    assert sum(values.size for values in halves.values()) >= sum(p.numel() for p in weights)
    casts = [
        node for node in graph.graph.node if node.op_type == "Cast" and node.input[0] in halves
    ]
    assert len(casts) == len(halves)
    for cast in casts:
        values = halves[cast.input[0]].astype(np.float32)
        old = next(t for t in graph.graph.initializer if t.name == cast.input[0])
        old.CopyFrom(numpy_helper.from_array(values, cast.output[0]))
        graph.graph.node.remove(cast)
    onnx.save(graph, tmp_path / "single.onnx")
    feed = {"image": as_input(PHOTOS).numpy()}
    single = open_session(tmp_path / "single.onnx").run(None, feed)
    for one, other in zip(exported.session.run(None, feed), single, strict=True):
        assert np.array_equal(one, other)


def test_rounding_touches_weights_only_and_says_what_does_not_fit() -> None:
    model = tiny().float()
    with torch.no_grad():
        model.vit.head.bias[0] = 1 / 3
    means = [torch.full(shape, 1 / 3) for shape in ((4, 8), (16,), (4, 8), (16,))]
    twin = MeteredViT(model, means)
    round_to_half(twin)
    # Eleven bits: 1/3 is 0.0101010101011 in binary, 1365/4096.
    assert model.vit.head.bias[0].item() == 1365 / 4096
    assert all(torch.equal(p.half().float(), p) for p in model.parameters())
    assert torch.equal(twin.means[1], torch.full((16,), 1 / 3))
    with torch.no_grad():
        model.vit.norm.weight[3] = 7e4
    with pytest.raises(ValueError, match=r"vit.norm.weight holds values beyond half precision"):
        round_to_half(twin)


def altered(twin: MeteredViT, value: float) -> MeteredViT:
    """The same model with one weight that its file does not hold."""
    other = copy.deepcopy(twin)
    other.model.vit.head.bias[0] += value
    return other


@pytest.mark.parametrize("value", [1e-4, math.nan])
def test_a_graph_that_differs_is_refused_and_leaves_no_file(
    dense: Exported, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(metered: MeteredViT, path: Path, *, name: str) -> None:
        shutil.copy(dense.path, path)

    monkeypatch.setattr(export_module, "write_onnx", write)
    target = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"tests-tiny: ONNX and torch logits differ by .* on 12"):
        export(altered(dense.metered, value), target, PHOTOS, name="tests-tiny")
    assert list(tmp_path.iterdir()) == []
    export(altered(dense.metered, 0.0), target, PHOTOS, name="tests-tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_sessions_run_on_the_processor(dense: Exported) -> None:
    assert isinstance(dense.session, onnxruntime.InferenceSession)
    assert dense.session.get_providers() == ["CPUExecutionProvider"]
