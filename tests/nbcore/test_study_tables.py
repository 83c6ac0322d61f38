"""Tables on disk: what a kill leaves behind, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nbcore.study.tables import (
    HISTORY_COLUMNS,
    RUN_COLUMNS,
    SITE_COLUMNS,
    PackedTable,
    StudyTables,
    Table,
    read_frames,
)
from tests.nbcore.tiny_study import arm

COLUMNS = ("name", "value")
ROWS = [{"name": "a,b", "value": "1"}, {"name": 'say "c"', "value": "2"}]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = Table(tmp_path / "deep" / "table.csv", COLUMNS)
    table.append(ROWS)
    return table


def rows_of(seed: int, count: int = 2) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """A run with `count` sites and records."""
    named = arm(seed=seed).columns()
    run, site, record = (
        dict.fromkeys(columns, "") | named
        for columns in (RUN_COLUMNS, SITE_COLUMNS, HISTORY_COLUMNS)
    )
    return run, [site] * count, [record] * count


def test_rows_are_added_and_read_back(table: Table) -> None:
    table.append([{"value": "3", "name": "d"}])
    assert table.read() == [*ROWS, {"name": "d", "value": "3"}]
    assert table.path.read_text().splitlines()[0] == "name,value"


def test_nothing_is_written_for_no_rows(tmp_path: Path) -> None:
    table = Table(tmp_path / "table.csv", COLUMNS)
    table.append([])
    table.mend()
    assert not table.path.exists()
    assert table.read() == []


def test_every_torn_tail_loses_its_row_and_no_other(table: Table) -> None:
    """A kill can leave any number of bytes of the last row."""
    whole = table.path.read_bytes()
    table.append([{"name": "ö", "value": "3"}])
    longer = table.path.read_bytes()
    for end in range(len(whole), len(longer)):
        table.path.write_bytes(longer[:end])
        assert table.read() == ROWS
        table.mend()
        assert table.path.read_bytes() == whole


def test_a_torn_header_is_no_table(table: Table) -> None:
    table.path.write_text("name,va")
    assert table.read() == []
    table.mend()
    table.append(ROWS)
    assert table.read() == ROWS


def test_damage_that_no_kill_leaves_is_refused(table: Table) -> None:
    table.path.write_text("name,value\na\nb,2\n")
    with pytest.raises(ValueError, match="line 2 has 1 values, needs 2; remove the line"):
        table.read()


def test_a_table_of_another_version_is_refused(table: Table) -> None:
    with pytest.raises(ValueError, match="has columns name,value; this version writes name,cost"):
        Table(table.path, ("name", "cost")).read()


def test_a_table_of_an_earlier_version_gets_its_new_columns(table: Table) -> None:
    newer = Table(table.path, ("name", "cost", "value"))
    expected = [row | {"cost": ""} for row in ROWS]
    assert newer.read() == expected
    newer.mend()
    newer.append([{"name": "d", "cost": "5", "value": "3"}])
    assert newer.read() == [*expected, {"name": "d", "cost": "5", "value": "3"}]
    assert table.path.read_text().splitlines()[0] == "name,cost,value"


@pytest.mark.parametrize("row", [{"name": "a"}, {"name": "a", "value": "1", "more": "2"}])
def test_a_row_with_other_columns_is_refused(table: Table, row: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"table\.csv: a row has columns"):
        table.append([row])
    assert table.read() == ROWS


@pytest.fixture
def packed(table: Table) -> PackedTable:
    """Rows that were added, or that an earlier version left, beside no packed ones yet."""
    return PackedTable(table.path.with_suffix(".csv.gz"), COLUMNS)


def test_a_packed_table_is_read_before_and_after_packing(table: Table, packed: PackedTable) -> None:
    assert packed.read() == ROWS
    packed.mend()
    first = packed.path.read_bytes()
    assert packed.read() == pd.read_csv(packed.path, dtype=str).to_dict("records") == ROWS
    packed.append([{"name": "c", "value": "3"}])
    assert packed.path.read_bytes() == first
    assert packed.read() == [*ROWS, {"name": "c", "value": "3"}]
    packed.mend()
    assert [path.name for path in packed.path.parent.iterdir()] == ["table.csv.gz"]
    assert packed.read() == [*ROWS, {"name": "c", "value": "3"}]
    packed.replace(ROWS)
    assert first[4:8] == bytes(4)  # No time of writing in it.
    assert packed.path.read_bytes() == first


def test_no_kill_costs_a_packed_table_a_row_or_doubles_one(
    table: Table, packed: PackedTable
) -> None:
    """Killed while a row was added, and between packing and unlinking what is packed."""
    added = table.path.read_bytes()
    table.path.write_bytes(added + b"half,")
    packed.mend()
    assert packed.read() == ROWS
    table.path.write_bytes(added)
    assert packed.read() == ROWS
    packed.mend()
    assert packed.read() == ROWS
    assert not table.path.exists()


def test_a_packed_table_of_an_earlier_version_gets_its_new_columns(packed: PackedTable) -> None:
    packed.mend()
    newer = PackedTable(packed.path, (*COLUMNS, "cost"))
    newer.mend()
    assert gzip.decompress(newer.path.read_bytes()).startswith(b"name,value,cost\n")
    assert newer.read() == [row | {"cost": ""} for row in ROWS]


@pytest.mark.parametrize("harm", [slice(-9), slice(9), slice(1, None)])
def test_a_damaged_packed_table_is_refused(packed: PackedTable, harm: slice) -> None:
    packed.mend()
    packed.path.write_bytes(packed.path.read_bytes()[harm])
    with pytest.raises(ValueError, match=r"table\.csv\.gz is damaged .*; bring it back"):
        packed.read()


def test_what_unfinished_runs_left_is_dropped(tmp_path: Path) -> None:
    tables = StudyTables(tmp_path)
    tables.add(*rows_of(0))
    tables.mend()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # Killed before its row in runs.csv was whole: seed 1 is unfinished.
    run, sites, history = rows_of(1)
    tables.history.append(history)
    tables.sites.append(sites)
    tables.runs.append([run])
    torn = tables.runs.path.read_bytes()[:-9]
    tables.runs.path.write_bytes(torn)
    assert [row["seed"] for row in tables.mend()] == ["0"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_is_recorded_last_where_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If writing stops anywhere, the run has no row and is done again."""
    order: list[str] = []
    monkeypatch.setattr(Table, "append", lambda self, rows: order.append(self.path.name))
    StudyTables(tmp_path).add(*rows_of(0))
    assert order == ["history.csv", "sites.csv", "runs.csv"]


def test_frames_know_numbers_and_what_is_undefined(tmp_path: Path) -> None:
    run, sites, history = rows_of(4)
    StudyTables(tmp_path).add(run | {"top1": 0.8125, "burden": ""}, sites, history)
    runs, site_frame, _ = read_frames(tmp_path)
    assert runs["top1"].tolist() == [0.8125]
    assert runs["seed"].tolist() == [4]
    assert runs["burden"].isna().all()
    assert site_frame["pruner"].tolist() == ["taylor", "taylor"]
