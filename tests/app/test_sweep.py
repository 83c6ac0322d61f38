from __future__ import annotations

import os
import time
from pathlib import Path

from app.sweep import files_named_in, keep_swept, sweep


def aged(path: Path, seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("photo")
    when = time.time() - seconds
    os.utime(path, (when, when))
    return path


def test_only_what_outlived_its_time_goes(tmp_path: Path) -> None:
    old, young = aged(tmp_path / "a" / "old.png", 3700), aged(tmp_path / "b" / "young.png", 3500)
    outside = aged(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "kept.png", 9999)
    link = tmp_path / "b" / "link"
    link.symlink_to(outside)
    assert sweep(tmp_path, 3600) == 1
    assert not old.exists()
    assert young.exists()
    assert link.is_symlink()
    assert outside.exists()
    # The folder was changed just now; it goes when it is old too.
    os.utime(old.parent, (0, 0))
    assert sweep(tmp_path, 3600) == 0
    assert not old.parent.exists()


def test_a_folder_that_is_not_there_has_nothing_to_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none", 1) == 0


def test_what_a_killed_app_left_goes_at_the_next_start(tmp_path: Path) -> None:
    left = aged(tmp_path / "hash" / "photo.png", 7200)
    thread = keep_swept(tmp_path, 3600, every_s=3600)
    deadline = time.monotonic() + 10
    while left.exists() and time.monotonic() < deadline:
        thread.join(0.01)
    assert not left.exists()
    assert thread.daemon


def test_what_the_page_itself_shows_stays(tmp_path: Path) -> None:
    first, upload = aged(tmp_path / "a" / "first.jpg", 7200), aged(tmp_path / "b" / "up.jpg", 7200)
    elsewhere = tmp_path.parent / "x.jpg"
    config = {"components": [{"props": {"value": [{"path": str(first)}, str(elsewhere)]}}, 3, None]}
    spared = files_named_in(config, tmp_path)
    assert spared == {first}
    assert sweep(tmp_path, 3600, spared) == 1
    assert first.exists()
    assert not upload.exists()
