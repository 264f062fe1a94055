"""The catalog of a cache: what is in it is kept, whatever ends its writer or damages it."""

import contextlib
import os
import sqlite3
import subprocess
import sys

import pytest

from tests.broken import noisy_frames, render
from tests.command_line import VD
from vd.config import DataConfig
from vd.data import catalog as module
from vd.data.catalog import Catalog, identify
from vd.data.manifest import read_manifest
from vd.data.outcome import Outcome
from vd.errors import VdError
from vd.files import read_csv

USED = Outcome("used", "", 50, 320, 240, 25.0, 2.0, "h264", 0.0, 2.0)


def make_set(root):
    """Two clips that are no videos, by name."""
    for name in ("fight/a.mp4", "normal/b.mp4"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(name.encode())
    return root


def hashes(root, cache):
    videos = read_manifest(DataConfig(root, cache)).videos
    return {video.name: video.id for video in identify(videos, cache)}


def execute(path, statement, *values):
    """Change or read a catalog as any program may."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        return database.execute(statement, values).fetchall()


def test_outcomes_come_back_as_they_were(tmp_path):
    outcomes = {"a": USED, "b": Outcome("quarantined", "timeout")}
    Catalog(tmp_path).add_outcomes(outcomes)
    assert Catalog(tmp_path).outcomes() == outcomes
    Catalog(tmp_path).add_outcomes({"b": USED})
    assert Catalog(tmp_path).outcomes() == {"a": USED, "b": USED}
    assert execute(tmp_path / "catalog.sqlite", "PRAGMA journal_mode") == [("delete",)]


def test_unchanged_files_are_not_read_again(tmp_path):
    root, cache = make_set(tmp_path / "set"), tmp_path / "cache"
    os.mkfifo(root / "normal" / "pipe.mp4")
    (root / "normal" / "empty.mp4").touch()
    first = hashes(root, cache)
    assert first["normal/pipe.mp4"] == first["normal/empty.mp4"] == ""
    assert len(first["fight/a.mp4"]) == 64
    name = os.fsencode(root / "fight" / "a.mp4")
    other = 64 * "0"  # which a second reading would replace
    execute(
        cache / "catalog.sqlite",
        "UPDATE hashes SET sha256 = ? WHERE path = ?", other, name,
    )  # fmt: skip
    assert hashes(root, cache) == first | {"fight/a.mp4": other}
    os.utime(root / "fight" / "a.mp4", ns=(1, 1))
    assert hashes(root, cache) == first


def test_another_file_of_the_same_size_and_time_is_read(tmp_path):
    root, cache = make_set(tmp_path / "set"), tmp_path / "cache"
    first = hashes(root, cache)
    path = root / "fight" / "a.mp4"
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    second = hashes(root, cache)
    assert second["fight/a.mp4"] != first["fight/a.mp4"]
    assert second["normal/b.mp4"] == first["normal/b.mp4"]


def test_any_name_is_kept(tmp_path, monkeypatch):
    root, cache = make_set(tmp_path / "set"), tmp_path / "cache"
    for number, name in enumerate((b"line\nbreak.mp4", b"return\r.mp4", b"\xff.mp4")):
        (root / "normal" / os.fsdecode(name)).write_bytes(bytes([number]))
    first = hashes(root, cache)
    assert len(set(first.values()) - {""}) == 5
    monkeypatch.setattr(module, "_hash_all", None)  # would raise
    assert hashes(root, cache) == first


def _overwrite(path):
    path.write_bytes(b"no database" * 1000)


def _shorten(path):
    path.write_bytes(b"SQLite format 3\0" + bytes(9000))


def _scramble(path):  # which only shows in the work
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + os.urandom(len(whole) // 2))


def _add_column(path):
    execute(path, "ALTER TABLE outcomes_2 ADD COLUMN more TEXT")


@pytest.mark.parametrize("damage", [_overwrite, _shorten, _scramble, _add_column])
def test_a_damaged_catalog_is_renamed_and_made_again(tmp_path, capsys, damage):
    path = tmp_path / "catalog.sqlite"
    Catalog(tmp_path).add_outcomes({str(i): USED for i in range(1000)})
    damage(path)
    damaged = path.read_bytes()
    Catalog(tmp_path).outcomes()
    Catalog(tmp_path).add_outcomes({"a": USED})
    assert Catalog(tmp_path).outcomes() == {"a": USED}
    printed = capsys.readouterr().err
    assert printed.startswith(f"warning: {path} is damaged (")
    assert printed.endswith("is renamed to catalog.sqlite.damaged and made again\n")
    assert (tmp_path / "catalog.sqlite.damaged").read_bytes() == damaged


def test_an_empty_file_is_a_new_catalog(tmp_path, capsys):
    (tmp_path / "catalog.sqlite").touch()
    Catalog(tmp_path).add_outcomes({"a": USED})
    assert Catalog(tmp_path).outcomes() == {"a": USED}
    assert capsys.readouterr().err == ""


def test_a_catalog_that_cannot_be_locked_is_renamed_with_its_journal(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.1)
    path = tmp_path / "catalog.sqlite"
    Catalog(tmp_path).add_outcomes({"a": USED})
    with contextlib.closing(sqlite3.connect(path)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        holder.execute("DELETE FROM outcomes_2")  # a journal stands beside the file
        assert Catalog(tmp_path).outcomes() == {}
        Catalog(tmp_path).add_outcomes({"b": USED})
        holder.rollback()
    assert "catalog.sqlite cannot be locked" in capsys.readouterr().err
    assert Catalog(tmp_path).outcomes() == {"b": USED}
    aside = execute(
        tmp_path / "catalog.sqlite.damaged", "SELECT sha256 FROM outcomes_2"
    )
    assert aside == [("a",)]


def test_a_catalog_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "catalog.sqlite").mkdir()
    with pytest.raises(
        VdError, match=r"catalog.sqlite cannot be used \(unable to open"
    ):
        Catalog(tmp_path).outcomes()


WRITER = """
import sys
from pathlib import Path
from vd.data.catalog import Catalog

catalog = Catalog(Path(sys.argv[1]))
for number in range(10**6):
    rows = [(f"{number}-{i}".encode(), i, i, i, "x" * 64) for i in range(200)]
    catalog.insert("hashes", rows)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_kill_9_in_a_write_keeps_every_committed_row(tmp_path, capsys):
    for kill_after in (5, 10, 20):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        for line in writer.stdout:
            committed = int(line)
            if committed == kill_after:
                writer.kill()  # in a later write
        writer.communicate()
        rows = Catalog(tmp_path).select("SELECT path FROM hashes")
        numbers = {int(path.split(b"-")[0]) for (path,) in rows}
        assert numbers >= set(range(committed + 1))
        assert len(rows) == 200 * len(numbers)  # no part of a transaction
        assert Catalog(tmp_path).select("PRAGMA integrity_check") == [("ok",)]
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_two_scans_at_once_on_a_new_cache_both_succeed(tmp_path):
    root = tmp_path / "set"
    for i in range(12):
        folder = root / ("fight", "normal")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        render(folder / f"{i}.mp4", noisy_frames(20 + i))
    data = ["--dataset-path", str(root), "--cache-dir", str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(
            [*VD, "scan", *data, "--report-dir", str(tmp_path / name)],
            stderr=subprocess.PIPE, text=True,
        )
        for name in "ab"
    ]  # fmt: skip
    for process in processes:
        printed = process.communicate()[1]
        assert process.returncode == 0, printed
        assert "warning" not in printed
    first = read_csv(tmp_path / "a" / "scan.csv")
    assert read_csv(tmp_path / "b" / "scan.csv") == first
    assert len(Catalog(tmp_path / "cache").outcomes()) == len(first) == 12
