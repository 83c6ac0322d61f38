"""Who is right and how often, counted by hand on eight photos, and what is asked in vain."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.errors import UserError
from app.flips import ORDERS, PATTERNS, Chapter, Query, Trio, applicable, find, summarize
from app.flips.query import positions
from app.flips.summary import share
from app.flips_tab import most_burden
from tests.app.flip_books import INFOS, PACKED, SAID, TARGETS, chapter, info, probs


@pytest.fixture(scope="module")
def book() -> Chapter:
    return chapter()


@pytest.fixture(scope="module")
def trio(book: Chapter) -> Trio:
    return book.trio("plain", "mended")


# Right:  photo   0  1  2  3  4  5  6  7
#         dense   r  r  -  r  r  -  r  -
#         plain   r  -  -  -  r  r  r  -
#         mended  r  r  r  -  r  -  -  -
@pytest.mark.parametrize(
    ("pattern", "photos"),
    [
        ("repaired", [1]),
        ("unrepaired", [3]),
        ("harmed", [6]),
        ("broken", [1, 3]),
        ("gained", [5]),
        ("all_wrong", [7]),
        ("all_right", [0, 4]),
        # All but those on which the three say the same: 0 and 4.
        ("disagree", [1, 2, 3, 5, 6, 7]),
        ("any", list(range(8))),
    ],
)
def test_patterns_by_hand(book: Chapter, trio: Trio, pattern: str, photos: list[int]) -> None:
    query = Query(pattern=pattern, sort="position")
    assert positions(book, trio, query).tolist() == photos
    words = Query(pattern=f" {PATTERNS[pattern].title.upper()} ", sort="position")
    assert positions(book, trio, words).tolist() == photos
    assert summarize(book, trio).counts[pattern] == len(photos)


def test_every_pattern_has_its_count_by_hand() -> None:
    cases = next(m for m in test_patterns_by_hand.pytestmark if m.name == "parametrize").args[1]  # type: ignore[attr-defined]
    assert {pattern for pattern, _ in cases} == set(PATTERNS)


def test_items_say_what_every_model_says(book: Chapter, trio: Trio) -> None:
    found = find(book, trio, Query(pattern="repaired"), limit=5)
    assert (found.total, found.matching, found.packed) == (1, 1, 1)
    (item,) = found.items
    assert (item.position, item.name, item.truth, item.packed) == (1, "test/1", "a", True)
    dense, plain, mended = (item.answers[name] for name in SAID)
    assert (dense.class_name, dense.right, dense.burden) == ("a", True, None)
    assert (plain.class_name, plain.right) == ("b", False)
    assert mended.right
    # Half precision keeps three digits.
    assert (plain.prob, plain.truth_prob) == pytest.approx((0.5, 0.25), abs=1e-3)
    assert (plain.burden, mended.burden) == (1.5, 2.0)
    # 0.8 ln(0.8 / 0.25) + 0.1 ln(0.1 / 0.5) + 0.1 ln(0.1 / 0.25) = 0.6780
    assert plain.kl_to_base == pytest.approx(0.6780, abs=2e-3)
    assert dense.kl_to_base == 0


def test_answers_without_a_burden_say_so(book: Chapter, trio: Trio) -> None:
    (item,) = find(book, trio, Query(pattern="all_wrong"), limit=1).items
    assert item.answers["plain"].burden is None


@pytest.mark.parametrize(
    ("options", "photos"),
    [
        ({"class_name": "b"}, [3, 4, 5]),
        # Plain is 0.8 0.5 0.6 0.5 0.9 0.4 0.7 0.58 sure, give or take half precision.
        ({"min_confidence": 0.65}, [0, 4, 6]),
        ({"max_confidence": 0.45}, [5]),
        ({"min_confidence": 0.55, "max_confidence": 0.65}, [2, 7]),
        ({"of": "dense", "min_confidence": 0.85}, [0, 6]),
        # Its burdens are 1 1.5 2 1.25 1.1 0.9 3 and none.
        ({"min_burden": 1.5}, [1, 2, 6]),
        ({"max_burden": 1.0}, [0, 5]),
        ({"min_burden": 0.0}, [0, 1, 2, 3, 4, 5, 6]),
        ({"of": "mitigated", "min_burden": 2.0, "max_burden": 2.0}, list(range(8))),
        ({"class_name": "a", "min_burden": 1.4, "max_confidence": 0.55}, [1]),
    ],
)
def test_ranges_by_hand(
    book: Chapter, trio: Trio, options: dict[str, Any], photos: list[int]
) -> None:
    query = Query(pattern="any", sort="position", **options)
    assert positions(book, trio, query).tolist() == photos


@pytest.mark.parametrize(
    ("sort", "of", "photos"),
    [
        ("confidence", "plain", [4, 0, 6]),
        ("unsure", "plain", [5, 1, 3]),
        ("burden", "plain", [6, 2, 1]),
        ("unburdened", "plain", [5, 0, 4]),
        # Dense's margin minus plain's: 0.95, 0.8, 0.3, and 0.27 on photo 7, of whose true class
        # dense is only 0.09 surer; on photo 0 it is 0.1 surer, with a margin of 0.15 more.
        ("margin", "plain", [1, 3, 6, 7]),
        # Mended leaves photo 6 (0.9 to 0.25) and 3 (0.7 to 0.25); 2 went from b to a, 0.5 sure.
        ("kl", "mitigated", [6, 3, 2]),
        ("position", "plain", [0, 1, 2]),
    ],
)
def test_orders_by_hand(book: Chapter, trio: Trio, sort: str, of: str, photos: list[int]) -> None:
    role = {"plain": "pruned"}.get(of, of)
    found = find(book, trio, Query(pattern="any", sort=sort, of=role), limit=len(photos))
    assert [item.position for item in found.items] == photos


def test_every_order_is_tried_by_hand() -> None:
    cases = next(m for m in test_orders_by_hand.pytestmark if m.name == "parametrize").args[1]  # type: ignore[attr-defined]
    assert {sort for sort, _, _ in cases} == set(ORDERS)


def test_the_sliders_end_at_a_short_number_above_every_burden(trio: Trio) -> None:
    # 3.0 is the largest, and itself a step.
    assert most_burden(trio) == 3.0
    # The next step is 87 times 0.05, in floats 4.3500000000000005.
    heavy = replace(trio.pruned, burden=np.array([1.0, 4.31, np.nan]))
    assert str(most_burden(replace(trio, pruned=heavy))) == "4.35"


def test_photos_without_a_burden_come_last(book: Chapter, trio: Trio) -> None:
    for sort in ("burden", "unburdened"):
        found = find(book, trio, Query(pattern="any", sort=sort), limit=8)
        assert found.items[-1].position == 7


def test_pages_join_to_the_whole(book: Chapter, trio: Trio) -> None:
    query = Query(pattern="any", sort="burden")
    pages = [find(book, trio, query, limit=3, offset=start) for start in (0, 3, 6, 9)]
    assert [page.total for page in pages] == [8] * 4
    joined = [item.position for page in pages for item in page.items]
    assert joined == positions(book, trio, query).tolist()
    here = find(book, trio, Query(pattern="any", packed=True), limit=8)
    assert (here.total, here.matching, here.packed) == (2, 8, 2)
    assert {item.position for item in here.items} == set(PACKED)


def test_packed_photos_are_the_files_of_their_positions(book: Chapter) -> None:
    assert [book.photo(k) for k in PACKED] == [b"RIFFone", b"\xff\xd8two"]
    assert book.photo(0) is None
    assert np.flatnonzero(book.packed).tolist() == list(PACKED)


def test_counts_over_all_photos_by_hand(book: Chapter, trio: Trio) -> None:
    counted = summarize(book, trio)
    assert counted.num_photos == 8
    right = {role: one.right for role, one in counted.accuracy.items()}
    assert right == {"dense": 5, "pruned": 4, "mitigated": 4}
    by_class = {
        name: {role: (one.right, one.total) for role, one in group.items()}
        for name, group in counted.by_class.items()
    }
    assert by_class["a"] == {"dense": (2, 3), "pruned": (1, 3), "mitigated": (3, 3)}
    assert by_class["c"] == {"dense": (1, 2), "pruned": (1, 2), "mitigated": (0, 2)}
    for role, one in counted.accuracy.items():
        assert sum(group[role].right for group in counted.by_class.values()) == one.right
        assert sum(group[role].total for group in counted.by_class.values()) == 8
    # Dense says a a b b b a c a, plain a b b a b b c b.
    assert counted.confusion["pruned"].tolist() == [[1, 3, 0], [1, 2, 0], [0, 0, 1]]
    for role, matrix in counted.confusion.items():
        assert matrix.sum() == 8
        flips = sum(a != b for a, b in zip(SAID["dense"], trio.voice(role).predicted, strict=True))
        assert matrix.sum() - np.trace(matrix) == flips


def test_counts_add_up(book: Chapter, trio: Trio) -> None:
    counts = summarize(book, trio).counts
    assert counts["repaired"] + counts["unrepaired"] == counts["broken"]
    dense, plain = (np.equal(SAID[name], TARGETS) for name in ("dense", "plain"))
    assert counts["broken"] - counts["gained"] == dense.sum() - plain.sum()
    assert counts["any"] == 8


def test_intervals_are_wilsons() -> None:
    # n = 10, k = 8, z = 1.96: centre (0.8 + z²/20) / (1 + z²/10), half width
    # z sqrt(0.8 · 0.2 / 10 + z²/400) / (1 + z²/10).
    z = 1.959964
    centre, spread = 0.8 + z**2 / 20, z * math.sqrt(0.016 + z**2 / 400)
    found = share(np.array([True] * 8 + [False] * 2))
    assert (found.right, found.total, found.value) == (8, 10, 0.8)
    ends = [(centre - spread) / (1 + z**2 / 10), (centre + spread) / (1 + z**2 / 10)]
    assert [found.low, found.high] == pytest.approx(ends, abs=1e-6)


def test_reliability_by_hand(book: Chapter, trio: Trio) -> None:
    found = summarize(book, trio).reliability["pruned"]
    assert sum(one.right.total for one in found.bins) == 8
    voice = trio.pruned
    for one in found.bins:
        own = (voice.confidence > one.low) & (voice.confidence <= one.high)
        assert one.right.total == own.sum()
        assert one.right.right == voice.right[own].sum()
        assert one.confidence == pytest.approx(voice.confidence[own].mean())
    # Sure and right: 0.9 yes, 0.8 yes, 0.7 yes, 0.6 no, 0.58 no, 0.5 no no, 0.4 yes. However half
    # precision puts them to the ends of bins, right and wrong share none, so the error is
    # (0.1 + 0.2 + 0.3 + 0.6 + 0.58 + 0.5 + 0.5 + 0.6) / 8 = 0.4225.
    assert found.error == pytest.approx(0.4225, abs=1e-3)


def test_without_a_mitigated_model_its_patterns_are_gone(book: Chapter) -> None:
    alone = book.trio("plain", None)
    names = {entry.name for entry in applicable(alone)}
    assert names == set(PATTERNS) - {"repaired", "unrepaired", "harmed"}
    counted = summarize(book, alone)
    assert set(counted.counts) == names
    assert set(counted.confusion) == {"pruned"}
    with pytest.raises(UserError, match="needs a mitigated variant beside plain"):
        find(book, alone, Query(pattern="repaired"), limit=1)
    with pytest.raises(UserError, match="unknown role 'mitigated'; available: dense, pruned"):
        find(book, alone, Query(pattern="any", of="mitigated"), limit=1)


def test_what_is_not_named_is_a_pair_of_one_family() -> None:
    far = info("far", base="other", mitigation="handoff")
    other = info("other", base=None)
    small = info("small", mitigation="handoff")
    book = chapter(INFOS)
    assert book.completed(None, None) == ("plain", "mended")
    assert book.completed("plain", None) == ("plain", "mended")
    assert book.completed("mended", None) == ("mended", None)
    assert book.completed(None, "mended") == ("plain", "mended")
    with pytest.raises(UserError, match="unknown pruned variant 'dense'; available: plain, mended"):
        book.completed("dense", None)
    assert {far.base, other.base, small.base} == {"other", None, "dense"}


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (("plain", "plain"), "pruned and mitigated are both plain; choose two"),
        (("nope", None), "unknown pruned variant 'nope'; available: plain, mended"),
        (("plain", "dense"), "unknown mitigated variant 'dense'; available: plain, mended"),
        (("old", None), "renew it"),
        (("plain", "old"), "renew it"),
    ],
)
def test_models_that_cannot_be_held_against_each_other(
    ids: tuple[str, str | None], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        chapter(refused={"old": "stale: renew it"}).trio(*ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": "flipped"}, "unknown pattern 'flipped'; available: all_right, all_wrong"),
        ({"class_name": "d"}, "unknown class 'd'; available: a, b, c"),
        ({"of": "teacher"}, "unknown role 'teacher'; available: dense, pruned, mitigated"),
        ({"sort": "size"}, "unknown order 'size'; available: burden, confidence"),
        ({"min_confidence": 1.5}, "min_confidence must be a number from 0 to 1, got 1.5"),
        ({"max_confidence": "1"}, "max_confidence must be a number from 0 to 1, got '1'"),
        ({"min_burden": -1}, "min_burden must be a number of at least 0, got -1"),
        ({"max_burden": math.nan}, "max_burden must be a number of at least 0, got nan"),
        ({"of": "dense", "min_burden": 1.0}, "dense is dense and has no burden"),
    ],
)
def test_wrong_questions_are_answered_with_the_right_ones(
    book: Chapter, trio: Trio, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        find(book, trio, Query(**({"pattern": "any"} | options)), limit=1)


@pytest.mark.parametrize(
    ("limit", "offset", "words"),
    [
        (0, 0, "limit must be a whole number from 1 to 200, got 0"),
        (201, 0, "limit must be a whole number from 1 to 200, got 201"),
        (1.5, 0, "limit must be a whole number"),
        (1, -1, "offset must be a whole number of at least 0, got -1"),
        (1, True, "offset must be a whole number"),
    ],
)
def test_pages_of_impossible_size_are_refused(
    book: Chapter, trio: Trio, limit: Any, offset: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        find(book, trio, Query(pattern="any"), limit=limit, offset=offset)


def test_probabilities_are_those_of_the_logits(book: Chapter, trio: Trio) -> None:
    for role, name in (("dense", "dense"), ("pruned", "plain"), ("mitigated", "mended")):
        voice = trio.voice(role)
        assert np.allclose(voice.probs, probs(name), atol=1e-3)
        assert np.allclose(voice.probs.sum(1), 1)
        assert np.allclose(np.exp(voice.log_probs), voice.probs)
