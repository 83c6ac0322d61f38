"""Python files of the repository, parsed for the tests that read code instead of running it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name; `target` is dotted, so `from a import b` gives "a.b"."""

    target: str
    line: int
    deferred: bool
    """True inside functions, so not carried out when the file is imported."""

    @property
    def top(self) -> str:
        return self.target.split(".")[0]

    def module_of(self, package: str) -> str | None:
        """The module of `package` that is imported from, or None."""
        parts = self.target.split(".")
        return parts[1] if parts[0] == package and len(parts) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A parsed file; `module` is its place in its package: "train", "pruning", "ui"."""

    package: str
    module: str
    stem: str
    tree: ast.Module

    @property
    def imports(self) -> list[Import]:
        return list(imports_of(self.tree, deferred=False))


def parse(path: str, text: str) -> Source:
    """The file at a path relative to the root, such as "nbcore/pruning/base.py"."""
    package, *rest = Path(path).with_suffix("").parts
    return Source(package=package, module=rest[0], stem=rest[-1], tree=ast.parse(text, path))


def imports_of(node: ast.AST, *, deferred: bool) -> Iterator[Import]:
    """Imports below a node in order, without those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        inside = deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(target=alias.name, line=child.lineno, deferred=inside)
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            for alias in child.names:
                yield Import(target=f"{base}.{alias.name}", line=child.lineno, deferred=inside)
        else:
            yield from imports_of(child, deferred=inside)


def python_files(*packages: str) -> list[str]:
    """Paths relative to the root of every Python file of the packages."""
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def read(path: str) -> Source:
    return parse(path, (ROOT / path).read_text(encoding="utf-8"))


Rule = Callable[[Source], Iterator[str]]
"""Yields what is wrong with a file, nothing if all is well."""
