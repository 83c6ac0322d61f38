"""Tables of a study on disk: rows are only ever added, and a killed process leaves no half row.

Everything about a run is on disk before its row in `runs.csv` is, so a run is finished exactly if
it has a row there.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbcore.checkpoint import write_atomically

if TYPE_CHECKING:
    import pandas as pd

ARM_COLUMNS = ("pruner", "mitigation", "target_macs_ratio", "seed")
RUN_COLUMNS = (
    "dataset",
    "arch",
    *ARM_COLUMNS[:3],
    "macs_ratio",
    "seed",
    "top1",
    "loss",
    "val_top1",
    "val_loss",
    "base_top1",
    "burden",
    "burden_null",
    "burden_dense_plus",
    "selection",
    "takeover",
    "residual",
    "stream",
    "num_params",
    "seconds",
    "device",
    "commit",
    "config",
)
SITE_COLUMNS = (
    *ARM_COLUMNS,
    "site",
    "kind",
    "total",
    "kept",
    "removed_macs",
    "burden",
    "burden_null",
    "burden_dense_plus",
    "selection",
    "takeover",
    "residual",
    "stream",
    "occupancy",
    "occupancy_dense",
)
HISTORY_COLUMNS = (
    *ARM_COLUMNS,
    "step",
    "macs_ratio",
    "load_heads",
    "load_neurons",
    "unit_load_heads",
    "unit_load_neurons",
    "loss",
)
FAILURE_COLUMNS = (*ARM_COLUMNS, "error")
TEXT_COLUMNS = {
    "dataset",
    "arch",
    "pruner",
    "mitigation",
    "device",
    "commit",
    "config",
    "site",
    "kind",
}

Row = Mapping[str, Any]


class Table:
    """A .csv file with fixed columns."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = tuple(columns)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows and wait until they are on the disk.

        Raises:
            ValueError: If a row lacks a column or has one too many.
        """
        if not rows:
            return
        for row in rows:
            if set(row) != set(self.columns):
                raise ValueError(
                    f"{self.path.name}: a row has columns {sorted(row)}, needs {self.columns}"
                )
        text = self._text(rows)
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = self._header() + text
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, str]]:
        """All whole rows; values as text, empty in columns that an earlier version did not write.

        Raises:
            ValueError: If the file has unknown columns, or a row is damaged that is not the last.
        """
        if not self.path.exists():
            return []
        lines = list(csv.reader(io.StringIO(self._whole(), newline="")))
        header = lines[0] if lines else list(self.columns)
        if not set(header) <= set(self.columns):
            raise ValueError(
                f"{self.path} has columns {','.join(header)}; this version writes "
                f"{','.join(self.columns)}; move the file away, or run the version that wrote it"
            )
        for number, line in enumerate(lines[1:], start=2):
            if len(line) != len(header):
                raise ValueError(
                    f"{self.path}, line {number} has {len(line)} values, needs {len(header)}; "
                    "remove the line, and its run will be done again"
                )
        empty = dict.fromkeys(self.columns, "")
        return [empty | dict(zip(header, line, strict=True)) for line in lines[1:]]

    def mend(self) -> None:
        """Drop the half row that a killed process left at the end, and add columns that an earlier
        version did not write."""
        if not self.path.exists():
            return
        whole = self._whole()
        if not whole:
            self.path.unlink()
        elif not whole.startswith(self._header()):
            self.replace(self.read())
        elif len(whole.encode()) != self.path.stat().st_size:
            write_atomically(self.path, whole)

    def replace(self, rows: Sequence[Row]) -> None:
        """Write the whole table anew."""
        write_atomically(self.path, self._header() + self._text(rows))

    def _whole(self) -> str:
        """The file up to its last line break: what follows was being written."""
        data = self.path.read_bytes()
        return data[: data.rfind(b"\n") + 1].decode("utf-8")

    def _header(self) -> str:
        return ",".join(self.columns) + "\n"

    def _text(self, rows: Sequence[Row]) -> str:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self.columns, lineterminator="\n")
        writer.writerows(rows)
        return buffer.getvalue()


class PackedTable(Table):
    """A .csv.gz file, a quarter of the size. Rows that are added wait in a .csv beside it, which a
    kill can only cost its last row, until `mend` packs them."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        super().__init__(path, columns)
        self._added = Table(path.with_suffix(""), columns)

    def append(self, rows: Sequence[Row]) -> None:
        self._added.append(rows)

    def read(self) -> list[dict[str, str]]:
        packed, added = super().read(), self._added.read()
        # A kill between packing and unlinking leaves rows in both.
        known = {tuple(row.values()) for row in packed} if added else set()
        return packed + [row for row in added if tuple(row.values()) not in known]

    def mend(self) -> None:
        """Pack what was added, and add columns that an earlier version did not write."""
        old = self.path.exists() and not self._whole().startswith(self._header())
        if old or self._added.path.exists():
            self.replace(self.read())

    def replace(self, rows: Sequence[Row]) -> None:
        text = self._header() + self._text(rows)
        write_atomically(self.path, gzip.compress(text.encode(), mtime=0))
        self._added.path.unlink(missing_ok=True)

    def _whole(self) -> str:
        try:
            return gzip.decompress(self.path.read_bytes()).decode("utf-8")
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{self.path} is damaged ({error}); bring it back or move it away"
            ) from error


class StudyTables:
    """The three tables of a study: runs, sites, history."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = Table(folder / "runs.csv", RUN_COLUMNS)
        self.sites = Table(folder / "sites.csv", SITE_COLUMNS)
        self.history = PackedTable(folder / "history.csv.gz", HISTORY_COLUMNS)

    def add(self, run: Row, sites: Sequence[Row], history: Sequence[Row]) -> None:
        """Record a finished run; its row in `runs.csv` comes last and makes it finished."""
        self.history.append(history)
        self.sites.append(sites)
        self.runs.append([run])

    def mend(self) -> list[dict[str, str]]:
        """Put the tables in order after a kill: no half rows, nothing of unfinished runs.

        Returns:
            The rows of `runs.csv`.
        """
        self.runs.mend()
        runs = self.runs.read()
        finished = {arm_of(row) for row in runs}
        for table in (self.sites, self.history):
            table.mend()
            rows = table.read()
            known = [row for row in rows if arm_of(row) in finished]
            if len(known) != len(rows):
                table.replace(known)
        return runs


def arm_of(row: Row) -> tuple[str, ...]:
    """What identifies the run of a row in any of the tables."""
    return tuple(str(row[name]) for name in ARM_COLUMNS)


def read_frames(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Runs, sites and history of a study with numbers as numbers; no column is left out."""
    import pandas as pd

    tables = StudyTables(folder)
    frames = []
    for table in (tables.runs, tables.sites, tables.history):
        frame = pd.DataFrame(table.read(), columns=list(table.columns))
        for column in set(table.columns) - TEXT_COLUMNS:
            frame[column] = pd.to_numeric(frame[column].replace("", None))
        frames.append(frame)
    return frames[0], frames[1], frames[2]
