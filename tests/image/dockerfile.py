"""Dockerfile and .dockerignore -> steps and context, for the instructions that ours use."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KNOWN = {"FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY", "EXPOSE", "HEALTHCHECK", "CMD"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One instruction."""

    name: str
    value: str
    """What follows it, lines joined."""
    line: int

    @property
    def flags(self) -> dict[str, str]:
        """Its --options."""
        return dict(re.findall(r"--([\w-]+)=(\S+)", self.value))

    @property
    def arguments(self) -> list[str]:
        """Its words without options."""
        return [word for word in self.value.split() if not word.startswith("--")]

    @property
    def command(self) -> list[str]:
        """The words of its exec form, as in CMD ["python", "-m", "app"].

        Raises:
            ValueError: If it is in shell form, under which signals do not reach the app.
        """
        found = re.search(r"\[.*\]\s*$", self.value)
        if found is None:
            raise ValueError(
                f"line {self.line}: {self.name} must be in exec form, got {self.value}"
            )
        return list(json.loads(found[0]))

    @property
    def variables(self) -> dict[str, str]:
        """Names and values of ENV."""
        return dict(re.findall(r"(\w+)=(\S+)", self.value))


def parse(text: str) -> list[Step]:
    """The steps of a Dockerfile in order.

    Raises:
        ValueError: If there is an instruction that nothing here knows how to run.
    """
    steps: list[Step] = []
    pending, start = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or not (line.strip() or pending):
            continue
        start = start if pending else number
        pending += line.rstrip("\\").strip() + " "
        if line.rstrip().endswith("\\"):
            continue
        name, _, value = pending.strip().partition(" ")
        if name not in KNOWN:
            raise ValueError(f"line {start}: unknown instruction {name!r}; known: {sorted(KNOWN)}")
        steps.append(Step(name=name, value=value.strip(), line=start))
        pending = ""
    return steps


def context(root: Path, ignore: Sequence[str]) -> list[Path]:
    """Files that a build sees, relative to the root, by the rules of .dockerignore; the last rule
    that matches a file or a folder above it decides."""
    rules = [line.strip() for line in ignore if line.strip() and not line.startswith("#")]
    found = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if ".git" in relative.parts or ".venv" in relative.parts or not path.is_file():
            continue
        chain = [*reversed(relative.parents[:-1]), relative]
        kept = True
        for rule in rules:
            pattern = rule.removeprefix("!")
            if any(_matches(str(part), pattern) for part in chain):
                kept = rule.startswith("!")
        if kept:
            found.append(relative)
    return found


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern.removeprefix("**/"))
    return "/" not in path and fnmatch.fnmatch(path, pattern)
