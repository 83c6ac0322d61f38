"""What the code avoids everywhere, each with planted violations and innocent look-alikes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.sources import Rule, Source, parse, python_files, read

PICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "misc", "common"}
COLOUR_MAP = re.compile(r"c_?map|colou?r_?map", re.IGNORECASE)


def has_no_colour_maps(source: Source) -> Iterator[str]:
    if source.module == "render":
        return
    for found in source.imports:
        if found.top == "matplotlib":
            yield f"line {found.line}: drawing belongs into render.py"
    for node in ast.walk(source.tree):
        for name in ("id", "attr", "arg", "name"):
            value = getattr(node, name, None)
            if isinstance(value, str) and COLOUR_MAP.search(value):
                yield f"{value}: colour maps belong into render.py"


def has_a_telling_name(source: Source) -> Iterator[str]:
    if VAGUE_NAMES & {source.module, source.stem}:
        yield f"{source.stem}.py does not say what the file is for"


def leaves_the_path_alone(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            yield f"line {node.lineno}: no sys.path"
    for found in source.imports:
        if found.target == "sys.path":
            yield f"line {found.line}: no sys.path"


def has_no_pickles(source: Source) -> Iterator[str]:
    for found in source.imports:
        if found.top in PICKLERS:
            yield f"line {found.line}: {found.top} runs whatever a file says"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            safe = {k.arg for k in node.keywords if ast.unparse(k.value) == "True"}
            if ast.unparse(node.func) == "torch.load" and "weights_only" not in safe:
                yield f"line {node.lineno}: torch.load needs weights_only=True"
            if "allow_pickle" in safe:
                yield f"line {node.lineno}: allow_pickle=True"


def is_plain_python(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"exec", "eval", "globals"}:
            yield f"line {node.lineno}: no {ast.unparse(node.func)}()"
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and target.attr in {"forward", "__class__"}:
                yield f"line {node.lineno}: {target.attr} of a live object is replaced"


# Tests may plant what packages must not hold.
RULES: dict[str, list[Rule]] = {
    "nbcore": [has_a_telling_name, leaves_the_path_alone, has_no_pickles, is_plain_python],
    "app": [
        has_a_telling_name,
        leaves_the_path_alone,
        has_no_pickles,
        is_plain_python,
        has_no_colour_maps,
    ],
    "tests": [has_a_telling_name, leaves_the_path_alone],
}
PLANTED: list[tuple[Rule, str, str]] = [
    (has_no_colour_maps, "app/ui.py", "from matplotlib import pyplot"),
    (has_no_colour_maps, "app/ui.py", "draw(values, cmap='magma')"),
    (has_no_colour_maps, "app/service.py", "COLOR_MAP = [(0, 0, 0)]"),
    (has_a_telling_name, "nbcore/pruning/utils.py", ""),
    (has_a_telling_name, "tests/helpers/photos.py", ""),
    (leaves_the_path_alone, "tests/test_a.py", "import sys\nsys.path.insert(0, '.')"),
    (leaves_the_path_alone, "nbcore/vit.py", "from sys import path"),
    (has_no_pickles, "nbcore/train.py", "torch.load(path, weights_only=False)"),
    (has_no_pickles, "nbcore/train.py", "torch.load(path)"),
    (has_no_pickles, "nbcore/data/cifar10.py", "import pickle"),
    (has_no_pickles, "nbcore/data/cifar10.py", "np.load(path, allow_pickle=True)"),
    (is_plain_python, "nbcore/vit.py", "block.forward = patched"),
    (is_plain_python, "nbcore/vit.py", "block.__class__ = Merging"),
    (is_plain_python, "app/ui.py", "eval(text)"),
]
INNOCENT: list[tuple[Rule, str, str]] = [
    (has_no_colour_maps, "app/render.py", "from matplotlib import colormaps"),
    (has_no_colour_maps, "app/burden.py", "def burden_map(values): ..."),
    (leaves_the_path_alone, "nbcore/vit.py", "import os, sys\nos.path, sys.argv"),
    (has_no_pickles, "nbcore/train.py", "torch.load(path, weights_only=True)"),
    (is_plain_python, "nbcore/vit.py", "class A:\n    def forward(self):\n        model.eval()"),
]


@pytest.mark.parametrize("path", python_files("nbcore", "app", "tests"))
def test_file_keeps_every_rule(path: str) -> None:
    source = read(path)
    assert [v for rule in RULES[source.package] for v in rule(source)] == []


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_planted_violation_is_found(rule: Rule, path: str, text: str) -> None:
    assert list(rule(parse(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), INNOCENT)
def test_innocent_source_is_left_alone(rule: Rule, path: str, text: str) -> None:
    assert list(rule(parse(path, text))) == []


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _, _ in PLANTED} == set().union(*RULES.values())
