"""Imports run one way: every rule is shown planted violations and innocent look-alikes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement

from tests.sources import ROOT, Rule, Source, parse, python_files, read

# A module may import those before it. The order is that of the story, with these choices:
# `preprocessing` stands before `data`, since training and app must crop alike; `evaluate` before
# `train`, which reads its own validation accuracy; `checkpoint` behind all that a reader needs to
# rebuild a model and before `export`, since it is the contract that an export fills. `pipeline`
# tells the story whose chapters are `stages`, `fit`, `record` and `complete`.
NBCORE = """
registry config distributed recipes preprocessing data augment vit graphed masking macs burden
pruning mitigation evaluate state history train teacher measure compact checkpoint serve answers
parity export provenance stages fit record complete pipeline verify add triton flips study bench
__main__
"""
APP = """
errors heap settings text text_models text_study text_flips theme images crops amounts turns
path_integral sites registry catalog flips zeros records timeline benches precision studies batches
inference latency question gradients token_maps removal trust attribution quantities burden ablation
task render pictures parity agreement comparison service speeds schema readable markup layer_maps
chart ablation_view in_short placeholders gallery flip_photo memory controls arguments api tabs
visit plot styles family ledger kept_units tradeoff load_history models_tab arms arm_plot study_view
study_tab flips_view flips_tab shipped_view first_view permalink poster takeaway ui journal watch
metrics gate remote outgoing wrong_calls stopping logs sweep sessions server answer_diff flatness
load bench_server bench __main__
"""
ORDER = {"nbcore": NBCORE.split(), "app": APP.split()}
APP_MAY_READ = {
    "answers",
    "burden",
    "checkpoint",
    "compact",
    "preprocessing",
    "provenance",
    "registry",
    "serve",
    "vit",
}
TRAINING = {
    "data",
    "flips",
    "augment",
    "pruning",
    "mitigation",
    "train",
    "recipes",
    "fit",
    "record",
    "complete",
    "pipeline",
    "study",
    "bench",
}
NOT_ON_TRAINING_HOSTS = {"gradio", "captum", "onnxruntime"}
STRANGERS = {
    ("app", "ui"): {"torch", "timm", "onnxruntime", "captum"},
    ("app", "service"): {"gradio", "fastapi", "starlette"},
    ("app", "render"): {"torch", "gradio"},
}


def follows_the_order(source: Source) -> Iterator[str]:
    order = ORDER[source.package]
    if source.module not in [*order, "__init__"]:
        yield f"{source.module} has no place yet; put it into ORDER where its imports allow"
        return
    allowed = order[: order.index(source.module) + 1] if source.module in order else []
    for found in source.imports:
        module = found.module_of(source.package)
        if module and module not in allowed:
            yield f"line {found.line}: {source.module} stands before {module}, so cannot import it"


def is_absolute(source: Source) -> Iterator[str]:
    for found in source.imports:
        if found.target.startswith("."):
            yield f"line {found.line}: name the package instead of {found.target}"


def runs_on_training_hosts(source: Source) -> Iterator[str]:
    if source.package == "nbcore":
        for found in source.imports:
            if found.top == "app":
                yield f"line {found.line}: nbcore knows nothing of app"
            if found.top in NOT_ON_TRAINING_HOSTS and not found.deferred:
                yield f"line {found.line}: a training host has no {found.top}; import it where used"


def reads_variants_only(source: Source) -> Iterator[str]:
    if source.package == "app":
        for found in source.imports:
            if found.top == "nbcore" and found.module_of("nbcore") not in APP_MAY_READ:
                yield f"line {found.line}: app may not import {found.target}"


def stays_in_its_layer(source: Source) -> Iterator[str]:
    strangers = STRANGERS.get((source.package, source.module), set())
    for found in source.imports:
        if found.top in strangers:
            yield f"line {found.line}: {source.module}.py knows nothing of {found.top}"


def recipes_are_configurations(source: Source) -> Iterator[str]:
    if (source.package, source.module) == ("nbcore", "recipes"):
        for found in source.imports:
            if found.top == "nbcore" and found.module_of("nbcore") not in {"config", "registry"}:
                yield f"line {found.line}: a recipe is made of nbcore.config, not {found.target}"


RULES: list[Rule] = [
    follows_the_order,
    is_absolute,
    runs_on_training_hosts,
    reads_variants_only,
    stays_in_its_layer,
    recipes_are_configurations,
]
PLANTED: list[tuple[Rule, str, str]] = [
    (follows_the_order, "nbcore/vit.py", "from nbcore.train import train"),
    (follows_the_order, "nbcore/vit.py", "def f():\n    import nbcore.export"),
    (follows_the_order, "nbcore/pruning/base.py", "from nbcore import pipeline"),
    (follows_the_order, "nbcore/__init__.py", "from nbcore.vit import PrunableViT"),
    (follows_the_order, "nbcore/newcomer.py", ""),
    (follows_the_order, "app/service.py", "from app.ui import build"),
    (is_absolute, "nbcore/pruning/base.py", "from ..vit import Site"),
    (is_absolute, "app/ui.py", "from . import text"),
    (runs_on_training_hosts, "nbcore/study.py", "def f():\n    from app.render import draw"),
    (runs_on_training_hosts, "nbcore/export.py", "try:\n    import onnxruntime\nfinally: pass"),
    (runs_on_training_hosts, "nbcore/data/base.py", "from captum.attr import Saliency"),
    (reads_variants_only, "app/registry.py", "from nbcore.train import train"),
    (reads_variants_only, "app/registry.py", "from nbcore import config"),
    (reads_variants_only, "app/registry.py", "import nbcore"),
    (stays_in_its_layer, "app/ui.py", "import torch.nn as nn"),
    (stays_in_its_layer, "app/service.py", "from fastapi import FastAPI"),
    (stays_in_its_layer, "app/service.py", "def f():\n    import gradio as gr"),
    (recipes_are_configurations, "nbcore/recipes.py", "from nbcore.vit import build_model"),
]
INNOCENT: list[tuple[Rule, str, str]] = [
    (follows_the_order, "nbcore/train.py", "from nbcore.vit import PrunableViT\nimport torch"),
    (follows_the_order, "nbcore/pruning/taylor.py", "from nbcore.pruning.base import PRUNERS"),
    (follows_the_order, "nbcore/vit.py", "if TYPE_CHECKING:\n    from nbcore.train import State"),
    (runs_on_training_hosts, "nbcore/export.py", "def f():\n    import onnxruntime"),
    (runs_on_training_hosts, "app/ui.py", "import gradio"),
    (reads_variants_only, "app/registry.py", "from nbcore.checkpoint import Variant"),
    (recipes_are_configurations, "nbcore/recipes.py", "from nbcore.config import RunConfig"),
]


@pytest.mark.parametrize("path", python_files("nbcore", "app"))
def test_file_keeps_every_rule(path: str) -> None:
    source = read(path)
    assert [violation for rule in RULES for violation in rule(source)] == []


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_planted_violation_is_found(rule: Rule, path: str, text: str) -> None:
    assert list(rule(parse(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), INNOCENT)
def test_innocent_source_is_left_alone(rule: Rule, path: str, text: str) -> None:
    assert list(rule(parse(path, text))) == []


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_app_reaches_no_training_code_through_others() -> None:
    reads: dict[str, set[str]] = {}
    for path in python_files("nbcore", "app"):
        source = read(path)
        node = source.module if source.package == "nbcore" else "app"
        modules = {found.module_of("nbcore") for found in source.imports if not found.deferred}
        reads.setdefault(node, set()).update(module for module in modules if module)
    reached: set[str] = set()
    frontier = {"app"}
    while frontier:
        frontier = set().union(*(reads.get(node, set()) for node in frontier)) - reached
        reached |= frontier
    assert reached & TRAINING == set()


def test_every_imported_distribution_is_required() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {Requirement(line).name.lower() for line in lines if line and line[0] != "#"}
    providers = packages_distributions()
    imported = {i.top: path for path in python_files("nbcore", "app") for i in read(path).imports}
    own = {"nbcore", "app", *sys.stdlib_module_names}
    missing = {
        f"{top} ({path})"
        for top, path in imported.items()
        if top not in own and not {d.lower() for d in providers.get(top, [])} & required
    }
    assert missing == set()


@pytest.mark.slow
def test_nbcore_imports_without_what_training_hosts_lack() -> None:
    modules = [path[:-3].replace("/", ".") for path in python_files("nbcore")]
    modules = [name.removesuffix(".__init__") for name in modules if "__main__" not in name]
    absent = sorted(NOT_ON_TRAINING_HOSTS)
    code = (
        f"import importlib, sys\nsys.modules.update(dict.fromkeys({absent}))\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
