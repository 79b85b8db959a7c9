"""The page: where each rank is, whatever it writes and whenever it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from verify.ranks.failure.calls import KEPT, Calls
from verify.ranks.failure.status import RankStatus, StatusPage, StatusWriter
from verify.ranks.local.anonymous import AnonymousFile, path_of


@pytest.fixture
def file() -> Iterator[AnonymousFile]:
    opened = AnonymousFile("page", bytes(StatusPage.size(2)))
    yield opened
    opened.close()


def test_an_untouched_record_says_nothing(file: AnonymousFile) -> None:
    assert StatusPage(file.descriptor, 2).read() == [RankStatus(0, 0, "", "")] * 2


def test_ranks_write_their_own_record_and_others_see_it(file: AnonymousFile) -> None:
    StatusWriter(StatusPage(file.descriptor, 2), 1).begin("local")
    reader = StatusPage(file.descriptor, 2)
    assert reader.read() == [RankStatus(0, 0), RankStatus(-1, 1, "local")]
    writer = StatusWriter(StatusPage(file.descriptor, 2), 0)
    writer.begin("local")
    writer.activity("velocity of gen")
    writer.finished(0)
    assert reader.read()[0] == RankStatus(0, 3, "local", "")
    writer.begin("broadcast")
    assert reader.read()[0] == RankStatus(-1, 1, "broadcast", "")


def test_collectives_are_counted_and_the_last_of_them_kept(file: AnonymousFile) -> None:
    reader, writer, other = (
        StatusPage(file.descriptor, 2),
        *(StatusWriter(StatusPage(file.descriptor, 2), rank) for rank in (0, 1)),
    )
    writer.begin("local")
    writer.collective("broadcast", 1, 0)
    for step in range(KEPT - 1):
        writer.collective("all_gather", 2, step)
    other.collective("all_gather", 3, 99)
    place = reader.read()[0]
    assert (place.marks, place.activity) == (KEPT + 1, f"all_gather 2 of step {KEPT - 2}")
    assert [place.calls.name(number) for number in (1, 2, KEPT)] == [
        "broadcast 1 of step 0", "all_gather 2 of step 0", f"all_gather 2 of step {KEPT - 2}",
    ]  # fmt: skip
    for step in range(3):  # Over the oldest.
        writer.collective("all_gather", 1, step)
    writer.activity("velocity of gen")
    calls = reader.read()[0].calls
    assert [calls.name(number) for number in (3, 4, KEPT, KEPT + 3, KEPT + 4)] == [
        "", "all_gather 2 of step 2", f"all_gather 2 of step {KEPT - 2}", "all_gather 1 of step 2", "",
    ]  # fmt: skip
    assert calls.count == KEPT + 3
    assert reader.read()[1].calls.name(1) == "all_gather 3 of step 99"


@pytest.mark.parametrize("begins", [True, False])
def test_a_task_begins_with_no_collective_called(file: AnonymousFile, begins: bool) -> None:
    """Whether the rank says so or, before it has come to that, the controller that hands the task out."""
    page = StatusPage(file.descriptor, 2)
    writer = StatusWriter(page, 0)
    writer.begin("local")
    writer.collective("broadcast", 1, 0)
    if begins:
        writer.begin("broadcast")
    else:
        page.write(0, RankStatus(task="broadcast"))
    assert page.read()[0].calls == Calls()
    writer.begin("broadcast")
    writer.collective("all_gather", 1, 7)
    assert [page.read()[0].calls.name(number) for number in (1, 2)] == ["all_gather 1 of step 7", ""]


@pytest.mark.parametrize(
    ("written", "task", "activity"),
    [
        ("x" * 200, "x" * 48, "x" * 64),
        ("é" * 200, "é" * 24, "é" * 32),
        ("a" + "é" * 200, "a" + "é" * 23, "a" + "é" * 31),  # 48 and 64 bytes end inside a character.
        ("loop \U0001f600\U0001f600" * 20, None, None),
        ("\udc80 of a file name", "? of a file name", "? of a file name"),
        ("", "", ""),
        ("a\0b", "a", "a"),
    ],
)
def test_text_of_any_kind(file: AnonymousFile, written: str, task: str | None, activity: str | None) -> None:
    page = StatusPage(file.descriptor, 2)
    page.write(0, RankStatus(3, 4, written, written))
    read, untouched = page.read()
    assert untouched == RankStatus(0, 0, "", "")
    assert (read.step, read.marks) == (3, 4)
    for seen, expected in ((read.task, task), (read.activity, activity)):
        assert "�" not in seen
        assert seen == expected if expected is not None else written.startswith(seen) and len(seen) > 8


def test_a_record_caught_half_written_reads_as_a_mixture(file: AnonymousFile) -> None:
    page = StatusPage(file.descriptor, 2)
    page.write(0, RankStatus(7, 8, "éé", "all_gather 1 of step 8"))
    raw = bytearray(file.read())
    raw[8] = 0xFF  # Neither the old text nor the new one.
    torn = AnonymousFile("torn", bytes(raw))
    read = StatusPage(torn.descriptor, 2).read()[0]
    torn.close()
    assert (read.step, read.marks, read.activity) == (7, 8, "all_gather 1 of step 8")
    assert read.task.endswith("é")
    assert "�" in read.task


def test_an_anonymous_file_has_no_name_and_no_end(file: AnonymousFile) -> None:
    assert file.size == StatusPage.size(2)
    other = AnonymousFile("text", "aé".encode())
    assert (other.tail(3), other.tail(100), other.tail(1)) == ("aé", "aé", "�")
    other.close()
    other.close()


def test_of_much_output_the_end_stays_and_the_beginning_takes_no_memory() -> None:
    file = AnonymousFile("output")
    kept, written = 1 << 20, b"".join(b"%07d\n" % number for number in range(1 << 19))
    with open(path_of(file.descriptor), "wb") as stream:
        for start in range(0, len(written), kept // 2):
            stream.write(written[start : start + kept // 2])
            stream.flush()
            file.forget_all_but(kept)
    assert file.tail(kept) == written[-kept:].decode()
    assert os.fstat(file.descriptor).st_blocks * 512 <= 2 * kept
    file.close()
