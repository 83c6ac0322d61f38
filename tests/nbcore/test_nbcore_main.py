"""The command line: exit statuses, one line for what a user can mend, help that names all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nbcore import complete, pipeline
from nbcore.__main__ import COMMANDS, main, parser
from nbcore.checkpoint import read_manifest, withdraw_variant
from nbcore.config import RunConfig
from nbcore.recipes import RECIPES
from tests.nbcore.runs import DENSE as TOY
from tests.nbcore.runs import shapes, toy_child

DENSE = "shapes-vit-mini-dense"
CHILD = "shapes-vit-mini-taylor-m50-none"


@pytest.fixture
def folder(tiny_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (pipeline, complete):
        monkeypatch.setattr(module, "load_dataset", shapes)
    return Path(shutil.copytree(tiny_checkpoints, tmp_path / "checkpoints"))


def call(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr that is no progress bar; a traceback would be more."""
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith(("nbcore", "Trace"))]
    assert len(lines) == 1
    return lines[0]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in text
        with pytest.raises(SystemExit):
            parser().parse_args([command, "--help"])
        assert f"python -m nbcore {command}" in capsys.readouterr().out


def test_help_of_run_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("run", "--help")
    text = capsys.readouterr().out
    for name in RECIPES:
        assert f"\n  {name}" in text


def test_wrong_command_is_answered_with_the_right_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call("prune")
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert all(command in text for command in COMMANDS)


def test_list_shows_every_variant_and_what_waits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    withdraw_variant(folder, CHILD)
    assert call("list", "--checkpoints", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    manifest = read_manifest(folder)
    assert [line.split()[0] for line in lines[:-1]] == [v.id for v in manifest.variants]
    assert f"top1 {manifest[DENSE].metrics['top1']:.4f}" in lines[0]
    assert "(1.000)" in lines[0]
    assert lines[-1] == (
        f"{CHILD}: trained; complete it with `python -m nbcore export {CHILD} --data DIR "
        f"--checkpoints {folder}`"
    )
    assert len({line.index("top1") for line in lines[:-1]}) == 1
    (folder / "manifest.json").unlink()
    assert call("list", "--checkpoints", folder) == 0
    assert capsys.readouterr().out.count("trained; complete it") == 4


def test_list_tells_what_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"bicubic"', '"nearest"', 1))
    assert call("list", "--checkpoints", folder) == 1
    assert f"{DENSE}: refused: " in capsys.readouterr().out


def test_verify_tells_by_its_exit_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", "--checkpoints", folder) == 0
    assert capsys.readouterr().out.endswith("everything holds\n")
    path = folder / CHILD / "model.onnx"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data))
    assert call("verify", "--checkpoints", folder) == 1
    out = capsys.readouterr().out
    assert f"FAULT {CHILD}: variant {CHILD}: model.onnx has sha256" in out
    assert out.endswith("1 faults\n")


def test_measure_prints_a_row_for_each_site(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("measure", CHILD, "--checkpoints", folder) == 0
    rows = capsys.readouterr().out.splitlines()
    columns = ["burden", "null", "select", "takeover", "residual", "stream", "occupied"]
    assert rows[0].split() == ["site", *columns]
    sites = read_manifest(folder)[CHILD].sites
    assert [row.split()[0] for row in rows[1:]] == [site.name for site in sites]
    assert call("measure", DENSE, "--checkpoints", folder) == 2
    assert f"{DENSE} is dense" in one_line(capsys)


@pytest.mark.slow
def test_export_completes_and_add_takes_in(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    withdraw_variant(folder, CHILD)
    (folder / CHILD / "model.onnx").unlink()
    assert call("export", CHILD, "--checkpoints", folder) == 0
    assert f"{CHILD}: top1 " in capsys.readouterr().out
    assert read_manifest(folder)[CHILD].metrics["num_images"] == 18
    withdraw_variant(folder, CHILD)
    source = Path(shutil.move(folder / CHILD, tmp_path / CHILD))
    assert call("add", source, "--checkpoints", folder) == 0
    assert capsys.readouterr().out == f"{CHILD}: added\n"
    assert call("add", source, "--checkpoints", folder) == 2
    assert "already" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["list"], "manifest.json does not exist"),
        (["verify"], "manifest.json does not exist"),
        (["measure", "x"], "no trained variant 'x'"),
        (["export", "x"], "no trained variant 'x'"),
        (["add", "nowhere"], "no trained variant 'nowhere'"),
    ],
)
def test_errors_are_one_line_and_exit_status_2(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--checkpoints", tmp_path / "empty") == 2
    assert text in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "nothing"], "unknown recipe 'nothing'; available: cifar10-four-layer"),
        (["run", "shapes-quick", "--only", "x"], r"shapes-quick has no variant ['x']"),
        (["run", "shapes-quick", "--only", CHILD], f"no trained variant '{DENSE}'"),
        (["run", "shapes-quick", "--device", "cuda"], "torch sees no GPU; use --device cpu"),
        (["run", "shapes-quick", "--device", "tpu9"], "cuda or cuda:N, got 'tpu9'"),
        (["run", "shapes-quick", "--macs-ratio", "2"], "macs_ratio must lie in (0, 1), got 2.0"),
        (["run", "shapes-quick", "--weights", "no.pt", "--device", "cpu"], "no.pt does not exist"),
        (["run", "imagenette-vit-tiny", "--device", "cpu"], "python -m nbcore data imagenette"),
    ],
)
def test_wrong_runs_are_one_line_and_exit_status_2(
    arguments: list[str],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(*arguments, "--out", tmp_path / "out", "--data", tmp_path) == 2
    assert text in one_line(capsys)


def test_verbose_errors_show_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        call("-v", "list", "--checkpoints", tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, str]]:
    """What `run` asks of the pipeline, which answers at once."""
    seen: list[tuple[RunConfig, str]] = []

    def answer(config: RunConfig, *_: Any, command: str, **__: Any) -> str:
        seen.append((config, command))
        return "trained"

    monkeypatch.setattr(pipeline, "run_variant", answer)
    known = {name: RECIPES[name] for name in RECIPES}
    monkeypatch.setattr("nbcore.recipes.RECIPES", known | {"toy": lambda: (TOY, toy_child())})
    return seen


def test_run_goes_through_the_recipe_with_the_options_given(
    asked: list, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "toy", "--seed", 7, "--weights", "a.pt") == 0
    model = replace(TOY.model, weights="a.pt")
    expected = [replace(config, seed=7, model=model) for config in (TOY, toy_child())]
    assert [config for config, _ in asked] == expected
    assert asked[1][1] == (
        "python -m nbcore run toy --only toy-taylor-m50-none --seed 7 --data DIR --weights a.pt"
    )
    out = capsys.readouterr().out
    assert "toy-dense: trained\ntoy-taylor-m50-none: trained\n" in out
    assert "finish with `python -m nbcore export ID --data DIR --checkpoints checkpoints`" in out


def test_run_of_an_arm_of_ones_own(asked: list) -> None:
    own = ("--pruner", "s2vite", "--mitigation", "token_merging+handoff", "--macs-ratio", 0.3)
    assert call("run", "shapes-quick", *own) == 0
    recipe = RECIPES["shapes-quick"]()
    dense, (arm, command) = asked[0][0], asked[1]
    assert dense == recipe[0]
    assert arm.id == "shapes-vit-mini-s2vite-m30-token_merging+handoff"
    assert arm.train == recipe[1].train
    assert arm.prune.updates == recipe[1].prune.updates
    # As the recipe merges; what it says nothing of has its defaults.
    assert arm.prune.mitigation_options == recipe[2].prune.mitigation_options
    assert command == (
        "python -m nbcore run shapes-quick --pruner s2vite --mitigation token_merging+handoff "
        "--macs-ratio 0.3 --seed 0 --data DIR"
    )
    assert asked[0][1].startswith(f"python -m nbcore run shapes-quick --only {dense.id} ")


def test_run_of_some_variants_leaves_the_others(asked: list) -> None:
    assert call("run", "toy", "--only", "toy-taylor-m50-none") == 0
    assert [config.id for config, _ in asked] == ["toy-taylor-m50-none"]
    assert asked[0][1].endswith("--seed 0 --data DIR")


def test_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "list", interrupted)
    assert call("list") == 130
    assert one_line(capsys) == "nbcore: stopped; the same command goes on from the last saved epoch"
