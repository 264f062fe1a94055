"""The feature store: a plain TFDS directory that survives kills and grows."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fabricated import (
    features_of,
    fill,
    in_parts,
    make_videos,
    open_store,
    seconds_of,
)
from tests.unprivileged import open_folder, unprivileged
from vd.data.outcome import Outcome
from vd.errors import VdError
from vd.features.shards import PART_FRAMES, Part, RecordFormat, Spool
from vd.files import lock

USED = Outcome("used", "", 50, 320, 240, 25.0, 2.0, "h264")


def chunk(videos, frames=5):
    return [(v.id, USED, "test", in_parts(features_of(v, frames))) for v in videos]


def test_reads_back_the_same_numbers_by_id_and_view(tmp_path):
    videos = make_videos(5)
    fill(open_store(tmp_path), chunk(videos))
    store = open_store(tmp_path)
    for video in videos:
        for view, expected in enumerate(features_of(video, 5)):
            np.testing.assert_array_equal(
                store.read(video.id, view), expected.reshape(5, -1)
            )
        np.testing.assert_array_equal(store.seconds(video.id), seconds_of(5))
    assert store.rows["v0"].outcome == USED


def test_wrong_metadata_is_written_again(tmp_path):
    store = open_store(tmp_path)
    fill(store, chunk(make_videos(3)))
    store.write_metadata()
    path = store.directory / "dataset_info.json"
    before = path.read_text()
    path.write_text(before.replace("array_record", "tfrecord"))
    open_store(tmp_path).write_metadata()
    assert path.read_text() == before


def test_a_long_video_is_several_records_read_only_where_asked(tmp_path):
    frames = 2 * PART_FRAMES + 7
    before, long, after = make_videos(3)
    store = open_store(tmp_path)
    fill(store, [*chunk([before]), *chunk([long], frames), *chunk([after])])
    store = open_store(tmp_path)
    for view, expected in enumerate(features_of(long, frames)):
        whole = store.read(long.id, view)
        np.testing.assert_array_equal(whole, expected.reshape(frames, -1))
        for start in (0, PART_FRAMES - 16, 2 * PART_FRAMES - 1, frames - 32):
            window = np.arange(start, start + 32).clip(max=frames - 1)
            np.testing.assert_array_equal(
                store.read(long.id, view, window), whole[window]
            )
    np.testing.assert_array_equal(store.seconds(long.id), seconds_of(frames))
    assert store.rows[long.id].parts == 3
    np.testing.assert_array_equal(
        store.read(after.id, 1), features_of(after, 5)[1].reshape(5, -1)
    )


def test_a_spool_gives_back_what_came_in_pieces_from_the_disk_too(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("vd.features.shards._SPOOL_BYTES", 1000)
    features = features_of(make_videos(1)[0], PART_FRAMES + 88)
    seconds_F = seconds_of(PART_FRAMES + 88)
    spool = Spool(tmp_path)
    for start in range(0, features.shape[1], 240):
        frames = slice(start, start + 240)
        spool.append(Part(features[:, frames], seconds_F[frames]))
    parts = list(spool.parts())
    spool.close()
    assert [len(part.seconds_F) for part in parts] == [PART_FRAMES, 88]
    back = np.concatenate([part.features_VxFxSxD for part in parts], axis=1)
    np.testing.assert_array_equal(back, features)
    np.testing.assert_array_equal(
        np.concatenate([part.seconds_F for part in parts]), seconds_F
    )


def test_plain_tfds_opens_it_without_tensorflow(tmp_path):
    store = open_store(tmp_path)
    fill(store, chunk(make_videos(3)))
    store.write_metadata()
    source = tfds.builder_from_directory(store.directory).as_data_source("videos")
    assert len(source) == 6
    assert source[3]["id"] == b"v1"
    assert source[3]["view"] == 1
    np.testing.assert_array_equal(
        source[3]["features"], features_of(make_videos(2)[1], 5)[1]
    )
    assert source[3]["seconds"].dtype == np.float64
    np.testing.assert_array_equal(source[3]["seconds"], seconds_of(5))
    assert "tensorflow" not in sys.modules


def test_the_bytes_of_a_record_are_the_same_in_every_process():
    form = RecordFormat(2, 3)
    part = Part(np.zeros((2, 4, 2, 3), np.float16), np.zeros(4))
    keys = b"features", b"id", b"part", b"seconds", b"view"
    for record in form.serialize("v0", 0, part):
        places = [record.rindex(key) for key in keys]
        assert places == sorted(places)


@settings(deadline=None)
@given(data=st.data())
def test_a_record_is_what_tfds_reads_in_it_and_no_other(data):
    streams, dim, frames = (data.draw(st.integers(1, 4)) for _ in range(3))
    form = RecordFormat(streams, dim)
    part = Part(
        data.draw(hnp.arrays(np.float16, (2, frames, streams, dim))),
        data.draw(hnp.arrays(np.float64, frames)),
    )
    for view, record in enumerate(form.serialize("v0", 7, part)):
        features_FxSD, seconds_F = form.parse(record, "v0", view, 7)
        theirs = form.features.deserialize_example_np(record)
        assert (theirs["id"], theirs["view"], theirs["part"]) == (b"v0", view, 7)
        flat = theirs["features"].reshape(frames, -1)
        np.testing.assert_array_equal(features_FxSD, flat)
        np.testing.assert_array_equal(seconds_F, theirs["seconds"])
        cut = record[: data.draw(st.integers(0, len(record) - 1))]
        with pytest.raises((DecodeError, ValueError, LookupError)):
            form.parse(cut, "v0", view, 7)
        for other in (("v1", view, 7), ("v0", 1 - view, 7), ("v0", view, 8)):
            with pytest.raises(ValueError, match="another record"):
                form.parse(record, *other)


def test_grows_by_shards_and_a_retried_video_replaces_its_row(tmp_path):
    store, quarantined = open_store(tmp_path), Outcome("quarantined", "timeout")
    fill(store, chunk(make_videos(2)))
    fill(store, [("w1", quarantined, "test"), ("bad", quarantined, "test")])
    assert store.rows["w1"].outcome == quarantined
    fill(store, chunk(make_videos(2, "w"), frames=7))
    again = open_store(tmp_path)
    assert again.rows["bad"].outcome == quarantined
    assert again.rows["bad"].views == 0
    assert again.rows["w1"].outcome == USED
    for name, frames in (("v0", 5), ("w1", 7)):
        assert len(again.read(name, 1)) == frames
        np.testing.assert_array_equal(again.read(name, 1), store.read(name, 1))


def test_a_shard_without_its_index_is_not_used_and_is_replaced(tmp_path):
    store = open_store(tmp_path)
    fill(store, chunk(make_videos(2)))
    torn = store.directory / "features-videos.array_record-00001"
    torn.write_bytes(b"half")
    again = open_store(tmp_path)
    assert set(again.rows) == {"v0", "v1"}
    again.recover()
    fill(again, chunk(make_videos(1, "w")))
    assert len(open_store(tmp_path).read("w0", 0)) == 5


def test_a_writer_that_waited_takes_in_what_another_added(tmp_path):
    late = open_store(tmp_path)
    other = open_store(tmp_path)
    for name in ("v", "w"):
        fill(other, chunk(make_videos(1, name)))
    late.recover()
    fill(late, chunk(make_videos(1, "x")))
    again = open_store(tmp_path)
    assert [len(again.read(name, 1)) for name in ("v0", "w0", "x0")] == [5, 5, 5]


def test_a_lost_index_costs_its_own_shard_alone(tmp_path):
    store = open_store(tmp_path)
    for name in ("v", "w"):
        fill(store, chunk(make_videos(1, name)))
    (store.directory / "index-00000.csv").unlink()
    again = open_store(tmp_path)
    assert set(again.rows) == {"w0"}
    again.recover()
    fill(again, chunk(make_videos(2, "x")))
    last = open_store(tmp_path)
    assert set(last.rows) == {"w0", "x0", "x1"}
    for video in (*make_videos(1, "w"), *make_videos(2, "x")):
        expected = features_of(video, 5)[1].reshape(5, -1)
        np.testing.assert_array_equal(last.read(video.id, 1), expected)


def test_what_may_not_be_read_is_not_damaged():
    with open_folder() as folder:
        store = open_store(folder)
        fill(store, chunk(make_videos(2)))
        before = {path: path.read_bytes() for path in store.directory.iterdir()}
        for name in ("index-00000.csv", "features-videos.array_record-00000"):
            (store.directory / name).chmod(0)
            with unprivileged(), pytest.raises(PermissionError, match=name):
                open_store(folder).recover()
            (store.directory / name).chmod(0o644)
        after = {path: path.read_bytes() for path in store.directory.iterdir()}
        assert after == before
        assert open_store(folder).damaged == []


def _write_for_ever(folder):
    store = open_store(folder)
    store.recover()
    number = sum(1 for _ in store.rows)
    while True:
        fill(store, chunk(make_videos(4, f"k{number}-")))
        number += 4


@pytest.mark.slow
def test_kill_9_leaves_whole_shards_only(tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=_write_for_ever, args=(tmp_path,)
    )
    process.start()
    directory = open_store(tmp_path).directory
    deadline = time.monotonic() + 60
    while not (directory / "index-00000.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.11)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = open_store(tmp_path)
    store.recover()
    assert not list(directory.glob("*.tmp-*"))
    assert len(store.rows) >= 4
    assert len(store.rows) % 4 == 0
    for row in store.rows.values():
        for view in range(row.views):
            expected = features_of(
                make_videos(4, row.id.split("-")[0] + "-")[int(row.id[-1])], 5
            )
            np.testing.assert_array_equal(
                store.read(row.id, view), expected[view].reshape(5, -1)
            )


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        store = open_store(small)
        fill(store, chunk(make_videos(2)))
        with pytest.raises(VdError, match=r"cannot be written.*free some space"):
            fill(store, chunk(make_videos(64, "big"), frames=100))
        assert set(open_store(small).rows) == {"v0", "v1"}
        assert not list(store.directory.glob("*.tmp-*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_second_writer_is_told_who_holds_the_store(tmp_path):
    path = tmp_path / "store" / ".lock"
    with (
        lock(path, "vd extract"),
        pytest.raises(VdError, match=f"vd extract, process {os.getpid()}"),
        lock(path, "vd extract"),
    ):
        pass
    with lock(path, "vd extract"):
        assert Path(path).exists()


def test_an_index_that_names_another_videos_record_gives_no_features(tmp_path):
    store = open_store(tmp_path)
    fill(store, chunk(make_videos(2)))
    path = store.directory / "index-00000.csv"
    head, first, second = path.read_text().splitlines()
    swapped = first.replace("v0,", "v1,"), second.replace("v1,", "v0,")
    path.write_text("\n".join([head, *swapped]) + "\n")
    with pytest.raises(VdError, match="is damaged"):
        open_store(tmp_path).read("v1", 0)
