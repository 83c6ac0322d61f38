"""Whether burden tells which photos pruning loses: made-up photos on which it does, or does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nbcore.__main__ import main
from nbcore.answers import Answer, Answers, answers_path, read_answers
from nbcore.checkpoint import Manifest, read_manifest
from nbcore.flips.damage import Damage, burden_damage, damage_table
from tests.nbcore.folders import CHILD, DENSE
from tests.sources import ROOT

PHOTOS, WRONG_ANYWAY = 2000, 100
RNG = np.random.default_rng(3)
MARGIN, LOAD = RNG.exponential(2.0, PHOTOS), RNG.normal(0.0, 0.5, PHOTOS)
LUCK = RNG.logistic(size=PHOTOS)


def made_up(manifest: Manifest, odds: np.ndarray) -> Answers:
    """Dense is right on all but the first photos; those with positive odds are lost."""
    targets = np.zeros(PHOTOS, np.int16)
    dense = np.zeros((PHOTOS, 2), np.float16)
    dense[:, 0] = MARGIN
    dense[:WRONG_ANYWAY] = [0.0, 9.0]
    lost = odds + LUCK > 0
    own = Answer(
        stamp="",
        photos_sha256="",
        logits=dense,
        predicted=lost.astype(np.int16),
        burden=np.exp(np.stack([LOAD, RNG.normal(size=PHOTOS)], 1)).astype(np.float16),
        # Only what lost units counts.
        removed_macs=(10, 0),
    )
    of_dense = replace(own, predicted=dense.argmax(1).astype(np.int16), burden=None)
    return Answers(
        dataset="shapes",
        classes=("a", "b"),
        names=tuple(map(str, range(PHOTOS))),
        targets=targets,
        answers={DENSE: of_dense, CHILD: own},
    )


@pytest.fixture(scope="module")
def manifest(asked_checkpoints: Path) -> Manifest:
    found = read_manifest(asked_checkpoints)
    plain = replace(found[CHILD], mitigation="none")
    return replace(found, variants=(found[DENSE], plain))


@pytest.mark.parametrize(
    ("odds", "verdict", "words"),
    [
        (-2.0 - MARGIN + 3.0 * LOAD, 1, "predicts"),
        (0.5 - MARGIN, -1, "does not predict"),
    ],
    ids=["by burden", "by the margin alone"],
)
def test_what_was_made_up_is_found(
    manifest: Manifest, odds: np.ndarray, verdict: int, words: str
) -> None:
    (found,) = burden_damage(made_up(manifest, odds), manifest)
    lost = (odds + LUCK > 0)[WRONG_ANYWAY:]
    assert (found.num_right, found.num_lost) == (PHOTOS - WRONG_ANYWAY, lost.sum())
    assert found.low <= found.gain <= found.high
    assert found.margin > 0.6
    assert abs(found.burden - 0.5) < 0.04 if verdict < 0 else found.burden > 0.7
    assert found.verdict == verdict
    assert list(damage_table([found]))[-1].endswith(f"| {words} |")


def test_few_losses_decide_nothing() -> None:
    found = Damage(
        variant="v",
        num_right=500,
        num_lost=19,
        margin=0.9,
        burden=0.5,
        gain=0.1,
        low=0.05,
        high=0.2,
    )
    assert found.verdict == 0
    assert replace(found, num_lost=20).verdict == 1


def test_nothing_is_said_where_there_is_nothing_to_tell(manifest: Manifest) -> None:
    assert burden_damage(made_up(manifest, np.full(PHOTOS, -99.0)), manifest) == []
    mitigated = replace(manifest[CHILD], mitigation="handoff")
    answers = made_up(manifest, 0.5 - MARGIN)
    assert burden_damage(answers, replace(manifest, variants=(manifest[DENSE], mitigated))) == []


def test_the_shipped_table_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = ROOT / "checkpoints"
    written = (folder / "flips" / "README.md").read_text(encoding="utf-8")
    command = ["flips", "--checkpoints", str(folder), "--dataset", "cifar10", "--damage"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    # The interval is drawn; the rest may differ in the last digit with the library's version.
    assert printed[:2] == written[written.index(printed[0]) :].splitlines()[:2]
    assert printed[2].rsplit("|", 3)[0] in written


def test_every_plain_variant_has_a_line() -> None:
    folder = ROOT / "checkpoints"
    written = (folder / "flips" / "README.md").read_text(encoding="utf-8")
    manifest = read_manifest(folder)
    for variant in manifest.variants:
        if variant.base is not None and variant.mitigation == "none":
            answers = read_answers(answers_path(folder, variant.dataset))
            right = answers.answers[variant.base].predicted == answers.targets
            assert f"| `{variant.id}` | {right.sum()} |" in written
