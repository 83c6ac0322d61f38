"""The README's examples of the API, run as they stand there against a served app."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.serving import Served, serve
from tests.sources import ROOT

ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def served(asked_checkpoints: Path) -> Served:
    return serve(asked_checkpoints)


def blocks(language: str) -> list[str]:
    """Code of the section about the API."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Call the API\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_python_example_runs_and_every_call_has_one(served: Served) -> None:
    found = blocks("python")
    called = re.findall(r'api_name="/(\w+)"', "".join(found))
    assert {*called} == {"models", "predict", "attribute", "burden", "compare", "flips"}
    for block in found:
        assert ADDRESS in block
        # What a call answers is printed, so that an empty answer would be seen.
        shown = re.sub(
            r"^client\.predict\((.*)\)$", r"print(client.predict(\1))", block, flags=re.M
        )
        said = run([sys.executable, "-c", shown.replace(ADDRESS, served.url)])
        assert "shapes-vit-mini-dense" in said


def test_curl_gets_the_answer_of_the_service(served: Served) -> None:
    (block,) = blocks("bash")
    said = run(["bash", "-euc", block.replace(ADDRESS, served.url)])
    kind, data = said.strip().split("\n\n")[-1].split("\n")
    assert kind == "event: complete"
    (answer,) = json.loads(data.removeprefix("data: "))
    photo = re.search(r"@(app/examples/\S+)", block)
    assert photo is not None
    wanted = served.service.predict(served.service.load_image(ROOT / photo[1]), top_k=3)
    assert {key: [top["prob"] for top in cell["top"]] for key, cell in answer.items()} == {
        key: [top.prob for top in cell.top] for key, cell in wanted.items()
    }
