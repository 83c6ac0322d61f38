"""A view -> the query of its address -> the same view."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ablation import Ablation
from app.errors import UserError
from app.permalink import View, query_of, view_of
from app.visit import Choices

MENUS = {
    "example": ["church", "dog 2"],
    "method": ["saliency", "grad_cam"],
    "target": ["base", "own", "gas pump", "a&b=c"],
    "quantity": ["burden", "load"],
    "kind": ["attn", "mlp"],
    "cut_order": ["smallest", "largest", "x"],
}
MANY = [f"photo-{k}" for k in range(1, 30)]
DEFAULTS = Choices(
    variants=["x"],
    method="saliency",
    target="base",
    before=False,
    quantity="burden",
    layer=1,
    kind="mlp",
)


def read(query: str) -> Any:
    return view_of(dict(parse_qsl(query.lstrip("?"))), DEFAULTS, MENUS)


@given(
    example=st.sampled_from([None, *MENUS["example"]]),
    flip=st.sampled_from([None, "imagenette/a b/c&d.JPEG"]),
    cut=st.builds(
        Ablation,
        layers=st.sampled_from([None, (1,), (2, 5)]),
        kinds=st.sampled_from([(), ("attn",), ("mlp",), ("attn", "mlp")]),
        share=st.integers(0, 100).map(lambda percent: percent / 100),
        order=st.sampled_from(MENUS["cut_order"]),
    ),
    choices=st.builds(
        Choices,
        variants=st.lists(
            st.from_regex(r"[a-z0-9_+-]{1,9}", fullmatch=True), min_size=1, max_size=4
        ),
        method=st.sampled_from(MENUS["method"]),
        target=st.sampled_from(MENUS["target"]),
        before=st.booleans(),
        quantity=st.sampled_from(MENUS["quantity"]),
        layer=st.integers(1, 99),
        kind=st.sampled_from(MENUS["kind"]),
    ),
)
def test_a_link_restores_the_view_that_it_was_made_of(**values: Any) -> None:
    assert read(query_of(View(**values))) == View(**values)


def test_a_link_is_silent_on_what_was_not_touched() -> None:
    assert "cut" not in query_of(View(choices=DEFAULTS))
    assert "cut_share=75" in query_of(View(choices=DEFAULTS, cut=Ablation(share=0.75)))


def test_a_refusal_is_short_however_much_there_is() -> None:
    menus = MENUS | {"variants": ["x", "y"], "example": MANY}
    with pytest.raises(UserError, match=r"^This link names the model 'z', which is not served"):
        view_of({"variants": "x,z"}, DEFAULTS, menus)
    with pytest.raises(UserError, match=r"available: photo-1, .*, photo-8, …\.$"):
        view_of({"example": "photo-0"}, DEFAULTS, menus)
    found = view_of({"variants": "y,x"}, DEFAULTS, menus)
    assert found is not None
    assert found.choices.variants == ["y", "x"]


def test_an_address_that_asks_for_nothing_is_the_first_view() -> None:
    assert read("") is None
    assert read("?__theme=dark&view=api") is None


def test_what_a_link_leaves_out_is_as_at_first() -> None:
    view = read("?example=church&layer=3")
    choices, example = view.choices, view.example
    assert view.cut == Ablation()
    assert (choices.variants, choices.method, choices.layer) == (["x"], "saliency", 3)
    assert example == "church"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?example=../../etc/passwd", r"example '\.\./\.\./etc/passwd'; available: church, dog 2"),
        ("?method=magic", "method 'magic'; available: saliency, grad_cam"),
        ("?target=unicorn", "target 'unicorn'; available: base, own, gas pump"),
        ("?quantity=weight", "quantity 'weight'; available: burden, load"),
        ("?layer=0", "layer '0'; a layer is a whole number from 1 on"),
        ("?layer=²", "layer '²'"),
        ("?cut_layers=1,x", "layer 'x'"),
        ("?cut_kinds=heads", "attn and mlp, not 'heads'"),
        ("?cut_share=101", "'101' percent; a share is a whole number from 0 to 100"),
        ("?cut_order=y", "cut_order 'y'; available: smallest, largest, x"),
    ],
)
def test_a_link_to_what_is_not_there_says_what_is(query: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(query)
