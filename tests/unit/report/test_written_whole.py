"""Files are written whole or not at all, and what cannot be written is told before there is something to lose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from verify.errors import BadInput
from verify.report.disk import check_writable, write_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run.json"
    target.write_text("old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(BadInput, match="No space left on device"):
        write_whole(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_text_that_cannot_be_encoded_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        write_whole(tmp_path / "page.html", "\udcff")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "it is a folder; name a file in it"),
        ("absent/run.json", "create the folder first"),
        ("a_file/run.json", "create the folder first"),
        ("dangling", "choose another one"),
        ("circle", ""),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a_file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent" / "run.json")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    before = sorted(tmp_path.iterdir())
    if name != "circle":  # What it is shows only in writing.
        with pytest.raises(BadInput, match=message):
            check_writable(tmp_path / name)
        with pytest.raises(BadInput, match=message):
            write_whole(tmp_path / name, "text")
    else:
        write_whole(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # The superuser may write everywhere.
    with pytest.raises(BadInput, match="writable folder; choose another one"):
        check_writable(tmp_path / "run.json")


def test_the_longest_name_and_a_link(tmp_path: Path) -> None:
    longest = tmp_path / ("n" * 250 + ".json")
    write_whole(longest, "text")
    assert longest.read_text() == "text"
    link = tmp_path / "link"
    link.symlink_to(longest)
    write_whole(link, "other")
    assert link.is_symlink()
    assert longest.read_text() == "other"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
