"""Extraction: whatever kills, fills or damages it, a rerun ends with the same records."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.rendering.clips import render_episode
from tests.broken import grey_frames, noisy_frames, render, render_late, render_paused
from tests.command_line import VD, vd
from tests.fabricated import write_tiny_backbone
from vd.config import (
    BackboneConfig,
    Config,
    DataConfig,
)
from vd.data.catalog import identify
from vd.data.decode import FrameSettings, read_header
from vd.data.manifest import read_manifest
from vd.data.workers import decode_videos
from vd.errors import VdError
from vd.features.backbone import find_backbone
from vd.features.extract import extract
from vd.features.store import open_store
from vd.files import read_csv

CHUNK = 4  # videos a shard, so that 32 clips are several
SCRIPT = f"""
import sys
import vd.cli, vd.features.shards
vd.features.shards._MOST_VIDEOS = {CHUNK}
if __name__ == "__main__":
    vd.cli.main()
"""


def extraction(clips, backbone, cache, verify=False, preset="best"):
    config = Config(
        data=DataConfig(clips, cache),
        backbone=BackboneConfig(preset, str(backbone)),
    )
    videos = identify(read_manifest(config.data).videos, cache)
    return extract(videos, config, find_backbone(config.backbone), verify)


def shards(cache):
    """Number of finished shards."""
    return len(list(cache.glob("features/*/*/index-*.csv")))


def records(store):
    """The bytes of each video's features, and of their seconds."""
    return {
        row.id: [
            *(store.read(row.id, view).tobytes() for view in range(row.views)),
            store.seconds(row.id).tobytes(),
        ]
        for row in store.rows.values()
    }


@pytest.fixture(scope="module")
def undisturbed(clips, backbone, tmp_path_factory):
    store, _ = extraction(clips, backbone, tmp_path_factory.mktemp("undisturbed"))
    return records(store)


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(clips, backbone, tmp_path, undisturbed):
    draw = np.random.default_rng(0)
    script, cache = tmp_path / "script.py", tmp_path / "cache"
    script.write_text(SCRIPT)
    command = [
        sys.executable, script, "extract", "--dataset-path", clips, "--backbone", backbone,
        "--cache-dir", cache, "--decode-workers", "1", "--feature-preset", "best",
    ]  # fmt: skip
    stores = set()
    for _ in range(10):
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        wanted = shards(cache) + draw.integers(3)  # 0: before the next one, imports too
        while process.poll() is None and shards(cache) < wanted:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3) if wanted else draw.uniform(0, 2))
        if process.poll() is None:
            process.kill()
        elif not process.returncode:
            shutil.rmtree(cache)  # done: the next one begins again
        process.wait()
        stores.add(shards(cache))
    assert len(stores) > 3  # kills fell between shards
    store, ledger = extraction(clips, backbone, cache)
    assert records(store) == undisturbed
    assert len(ledger.usable()) == 32
    assert not list(store.directory.glob("*.tmp-*"))
    assert not store.recover(verify=True)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "zeroed", "swapped"])
def test_verify_finds_what_is_damaged_and_makes_it_again(
    clips, backbone, tmp_path, undisturbed, monkeypatch, capsys, damage
):
    monkeypatch.setattr("vd.features.shards._MOST_VIDEOS", CHUNK)
    store, _ = extraction(clips, backbone, tmp_path)
    shard = sorted(store.directory.glob("features-videos.array_record-*"))[2]
    content = shard.read_bytes()
    middle = content.rindex(b"features") + 100  # inside a record
    if damage == "flipped":
        flipped = bytes([content[middle] ^ 1])
        shard.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    elif damage == "zeroed":
        shard.write_bytes(content[:middle] + bytes(300) + content[middle + 300 :])
    else:  # another shard's records, whole in themselves
        shutil.copy(shard.with_name(shard.name[:-1] + "0"), shard)
    capsys.readouterr()
    store, ledger = extraction(clips, backbone, tmp_path, verify=True)
    printed = capsys.readouterr().err
    assert "warning: shard 2 of" in printed
    assert f"extracting {CHUNK} videos" in printed
    assert records(store) == undisturbed
    assert len(ledger.usable()) == 32
    extraction(clips, backbone, tmp_path, verify=True)
    assert "shards: none damaged" in capsys.readouterr().err


def test_with_a_full_cache_no_engine_is_built(clips, backbone, tmp_path, monkeypatch):
    store, _ = extraction(clips, backbone, tmp_path)

    def fail(*_):
        raise AssertionError("an engine was built")

    monkeypatch.setattr("vd.features.extract.make_engine", fail)
    monkeypatch.setattr("vd.features.engines.onnxruntime.InferenceSession", fail)
    again, ledger = extraction(clips, backbone, tmp_path)
    assert again.rows == store.rows
    assert len(ledger.usable()) == 32
    video = ledger.usable()[0]
    np.testing.assert_array_equal(again.read(video.id, 0), store.read(video.id, 0))


def test_a_changed_video_under_the_same_name_is_extracted_again(
    clips, backbone, tmp_path
):
    root = tmp_path / "set"
    shutil.copytree(clips, root)
    first, second = sorted(root.glob("train/*/*.mp4"))[:2]
    extraction(root, backbone, tmp_path / "cache")
    shutil.copy(second, first)
    store, ledger = extraction(root, backbone, tmp_path / "cache")
    ids = {video.name: video.id for video in ledger.usable()}
    name, other = (str(path.relative_to(root)) for path in (first, second))
    assert ids[name] == ids[other]
    assert set(ids.values()) < set(
        store.rows
    )  # the former content stays, under its hash


@pytest.mark.slow
def test_a_read_only_store_is_one_sentence(clips, backbone, tmp_path):
    cache = tmp_path / "cache"
    extraction(clips, backbone, cache)
    mount = ["mount", "--bind", "-o", "ro", str(cache), str(cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        arguments = (
            "--dataset-path",
            clips,
            "--cache-dir",
            cache,
            "--backbone",
            backbone,
        )
        done = vd("extract", *arguments, "--verify", code=2)
        assert f"{cache}/" in done.stderr.splitlines()[-1]
        assert "Read-only" in done.stderr.splitlines()[-1]
    finally:
        subprocess.run(["umount", str(cache)], check=True)


@pytest.mark.slow
def test_a_second_extractor_waits_and_names_who_holds_the_store(
    clips, backbone, tmp_path
):
    arguments = [
        "extract", "--dataset-path", str(clips), "--backbone", str(backbone),
        "--cache-dir", str(tmp_path), "--decode-workers", "1",
    ]  # fmt: skip
    both = [
        subprocess.Popen([*VD, *arguments], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("extracting " in lines for lines in printed) == 1
    for process, lines in zip(both, printed, strict=True):
        if "waiting for " in lines:  # else it began when the other had ended
            (other,) = (p.pid for p in both if p is not process)
            assert f"waiting for an extraction, process {other}" in lines


def test_mirrored_view_is_the_plain_view_of_the_mirrored_images(
    clips, backbone, tmp_path
):
    store, ledger = extraction(clips, backbone, tmp_path)
    video = ledger.usable()[0]
    plain, mirrored = store.read(video.id, 0), store.read(video.id, 1)
    assert plain.shape == mirrored.shape == (store.rows[video.id].frames, 24)
    assert not np.array_equal(plain, mirrored)


@pytest.mark.slow
def test_the_fast_preset_stores_one_view_and_the_best_three_streams(
    clips, backbone, tmp_path
):
    arguments = "--dataset-path", clips, "--backbone", backbone, "--cache-dir", tmp_path
    facts = {}
    for preset in ("fast", "best"):
        vd("extract", *arguments, "--feature-preset", preset)
        config = BackboneConfig(feature_preset=preset, backbone=str(backbone))
        store = open_store(tmp_path, find_backbone(config), 8)
        row = next(iter(store.rows.values()))
        facts[preset] = row.views, store.read(row.id, 0).shape[1]
    assert facts == {"fast": (1, 2 * 8), "best": (2, 3 * 8)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost", ["index cut", "index empty", "index", "shard", "shard cut"]
)
def test_a_lost_shard_or_index_is_made_again_by_a_plain_rerun(
    clips, backbone, tmp_path, undisturbed, monkeypatch, capsys, lost
):
    monkeypatch.setattr("vd.features.shards._MOST_VIDEOS", CHUNK)
    store, _ = extraction(clips, backbone, tmp_path)
    index = store.directory / "index-00002.csv"
    content = index.read_text()
    shard = store.directory / "features-videos.array_record-00002"
    others = {path: path.read_bytes() for path in store.directory.glob("*-0000[!2]*")}
    if lost == "shard":
        shard.unlink()
    elif lost == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif lost == "index":
        index.unlink()
    elif lost == "index cut":
        index.write_text(content[: len(content) // 2])
    else:
        index.write_text("")
    capsys.readouterr()
    store, _ = extraction(clips, backbone, tmp_path)
    printed = capsys.readouterr().err
    assert "warning: shard 2 of" in printed
    assert f"extracting {CHUNK} videos" in printed
    assert {path: path.read_bytes() for path in others} == others
    assert records(store) == undisturbed
    assert store.recover(verify=True) == []
    extraction(clips, backbone, tmp_path)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["dataset_info.json", "features.json", "../fingerprint.json"]
)
def test_what_tells_of_a_store_is_written_again(clips, backbone, tmp_path, name):
    store, _ = extraction(clips, backbone, tmp_path)
    path = store.directory / name
    content = path.read_bytes()
    for damaged in (None, b"{}", content.replace(b"16", b"32"), b"no JSON"):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        extraction(clips, backbone, tmp_path)
        assert path.read_bytes() == content


@pytest.mark.slow
def test_verify_after_the_first_index_was_lost(
    clips, backbone, tmp_path, undisturbed, monkeypatch, capsys
):
    monkeypatch.setattr("vd.features.shards._MOST_VIDEOS", CHUNK)
    store, _ = extraction(clips, backbone, tmp_path)
    (store.directory / "index-00000.csv").unlink()
    assert records(extraction(clips, backbone, tmp_path, verify=True)[0]) == undisturbed
    assert "warning: shard 0 of" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_cache_is_used_from_a_read_only_disk(clips, backbone, tmp_path):
    cache = tmp_path / "cache"
    extraction(clips, backbone, cache)
    mount = ["mount", "--bind", "-o", "ro", str(cache), str(cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        arguments = "--dataset-path", clips, "--cache-dir", cache
        vd("extract", *arguments, "--backbone", backbone, "--feature-preset", "best")
    finally:
        subprocess.run(["umount", str(cache)], check=True)


@pytest.mark.slow
def test_a_file_replaced_while_it_is_decoded_is_not_kept_under_its_former_hash(
    clips, backbone, tmp_path, monkeypatch
):
    root, cache = tmp_path / "set", tmp_path / "cache"
    shutil.copytree(clips, root)
    first, second = sorted(root.glob("train/*/*.mp4"))[:2]

    def decode(paths, *arguments, **named):
        shutil.copy(second, first)  # after it was hashed
        yield from decode_videos(paths, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("vd.features.extract.decode_videos", decode)
        store, ledger = extraction(root, backbone, cache)
    entry = next(e for e in ledger.entries if e.video.path == first)
    assert (entry.outcome.outcome, entry.outcome.reason) == ("quarantined", "changed")
    assert entry.video.id not in store.rows
    _, ledger = extraction(root, backbone, cache)
    assert len(ledger.usable()) == 32
    assert {e.outcome.outcome for e in ledger.entries} == {"used"}


@pytest.mark.slow
def test_progress_tells_frames_a_second_and_every_stretch_of_a_long_video(
    backbone, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("vd.console._PLAIN_EVERY_SECONDS", 0.0)
    root = tmp_path / "set"
    for name in ("violent", "normal"):
        (root / name).mkdir(parents=True)
        render_episode(
            root / name / "a.mp4", calm_seconds=10, violent_seconds=20, seed=len(name)
        )
    extraction(root, backbone, tmp_path / "cache", preset="fast")
    lines = [
        line for line in capsys.readouterr().err.splitlines() if "extracting:" in line
    ]
    assert len(lines) == 2 * 3  # stretches of 30 s
    assert "0/2 videos" in lines[0]
    assert re.search(r" \d+ s left", lines[1])
    rates = [int(line.split(" frames/s")[0].split()[-1]) for line in lines]
    assert min(rates) > 0


def test_the_promise_is_near_and_taken_from_all_over_the_manifest(
    clips, backbone, tmp_path, capsys
):
    """Each class has files of its own bytes a second: the first four are of one only."""
    root = tmp_path / "set"
    shutil.copytree(clips, root)
    for path in root.rglob("violent/*.mp4"):
        path.write_bytes(
            path.read_bytes() + bytes(10**6)
        )  # a longer file, no longer video
    store, ledger = extraction(root, backbone, tmp_path / "cache", preset="fast")
    assert {e.outcome.outcome for e in ledger.entries} == {"used"}
    printed = re.search(r"about ([\d,]+) images", capsys.readouterr().err)[1]
    true = sum(2 * row.frames for row in store.rows.values())
    assert 0.8 * true < int(printed.replace(",", "")) < 1.35 * true


def test_one_header_that_says_weeks_does_not_tell_of_all(
    clips, backbone, tmp_path, capsys
):
    root = tmp_path / "set"
    shutil.copytree(clips, root)
    late = render_late(root / "train" / "violent" / "late.mkv")
    assert header_duration(late) > 10**6
    store, ledger = extraction(root, backbone, tmp_path / "cache", preset="fast")
    assert {e.outcome.outcome for e in ledger.entries} == {"used"}
    printed = re.search(r"about ([\d,]+) images", capsys.readouterr().err)[1]
    true = sum(2 * row.frames for row in store.rows.values())
    assert int(printed.replace(",", "")) < 2 * true


def test_seconds_and_gaps_are_stored(backbone, tmp_path):
    root = tmp_path / "set"
    for name in ("violent", "normal"):
        (root / name).mkdir(parents=True)
    render_paused(root / "violent" / "a.mkv")
    render(root / "normal" / "a.mp4", noisy_frames(50))
    store, ledger = extraction(root, backbone, tmp_path / "cache")
    (paused,) = (e for e in ledger.entries if e.video.label)
    ((start, length),) = paused.outcome.gaps
    assert (start, length) == pytest.approx((1.0, 60.0))
    seconds_F = store.seconds(paused.video.id)
    assert len(seconds_F) == store.rows[paused.video.id].frames
    assert seconds_F[0] == 0
    assert (np.diff(seconds_F) > 0).all()
    assert np.sum(seconds_F < 1) == pytest.approx(8, abs=1)
    assert seconds_F[seconds_F > 1][0] == pytest.approx(61.0)
    rows = read_csv(tmp_path / "cache" / "ledger.csv")
    gaps = {row["path"]: row["gaps"] for row in rows}
    assert json.loads(gaps.pop("violent/a.mkv")) == [[start, length]]
    assert set(gaps.values()) == {""}


def test_a_liar_among_two_files_stops_nothing(backbone, tmp_path, capsys):
    root = tmp_path / "set"
    for name in ("violent", "normal"):
        (root / name).mkdir(parents=True)
    render_late(root / "violent" / "late.mkv")
    render(root / "normal" / "a.mp4", noisy_frames(50))
    _, ledger = extraction(root, backbone, tmp_path / "cache", preset="fast")
    assert {e.outcome.outcome for e in ledger.entries} == {"used"}
    assert promised_images(capsys.readouterr().err) < 100_000  # not 70 million


def test_the_promise_knows_slow_videos_and_those_that_say_no_length(
    backbone, tmp_path, capsys
):
    root = tmp_path / "set"
    for name in ("violent", "normal"):
        (root / name).mkdir(parents=True)
    for number in range(4):
        render(root / "violent" / f"{number}.mp4", noisy_frames(60), fps=1)
    render(root / "normal" / "a.mp4", noisy_frames(60), fps=1)
    store, _ = extraction(root, backbone, tmp_path / "slow", preset="fast")
    true = sum(2 * row.frames for row in store.rows.values())
    assert 0.9 * true < promised_images(capsys.readouterr().err) < 1.1 * true
    shutil.rmtree(root / "violent")
    (root / "violent").mkdir()
    for number in range(4):
        live = root / "violent" / f"{number}.webm"
        render(live, noisy_frames(60), fps=1, codec="libvpx", live="1")
        assert header_duration(live) == 0
    store, _ = extraction(root, backbone, tmp_path / "live", preset="fast")
    true = sum(2 * row.frames for row in store.rows.values())
    assert 0.3 * true < promised_images(capsys.readouterr().err) < 3 * true


def header_duration(path):
    return read_header(path, FrameSettings()).duration


def promised_images(printed):
    return int(re.search(r"about ([\d,]+) images", printed)[1].replace(",", ""))


@pytest.mark.slow
def test_a_large_file_that_does_not_decode_tells_nothing_of_the_others(
    clips, backbone, tmp_path, capsys
):
    root = tmp_path / "set"
    shutil.copytree(clips / "val", root)
    with open(root / "violent" / "huge.mp4", "wb") as handle:
        handle.truncate(2 * 2**30)
    ledger = extraction(root, backbone, tmp_path / "cache", preset="fast")[1]
    assert len(ledger.usable()) == 8
    assert promised_images(capsys.readouterr().err) < 8 * 3 * 8 * 2


@pytest.mark.slow
def test_files_of_many_bytes_a_second_tell_nothing_of_those_of_few(
    backbone, tmp_path, capsys
):
    """Two seconds of raw pictures have a hundred times the bytes of the others."""
    root = tmp_path / "set"
    for name in ("violent", "normal"):
        (root / name).mkdir(parents=True)
    for number in range(80):
        still = np.full((48, 64, 3), 3 * number, np.uint8)
        render(root / "violent" / f"{number:02}.mp4", [still] * 50)
    render(root / "normal" / "a.mp4", grey_frames(50))
    render(
        root / "normal" / "b.avi", noisy_frames(50), codec="rawvideo", pix_fmt="bgr24"
    )
    store, _ = extraction(root, backbone, tmp_path / "cache", preset="fast")
    true = sum(2 * row.frames for row in store.rows.values())
    assert 0.7 * true < promised_images(capsys.readouterr().err) < 1.4 * true


@pytest.mark.slow
def test_without_a_temporary_folder_shared_memory_is_enough(
    clips, backbone, tmp_path, monkeypatch
):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    store, _ = extraction(clips, backbone, tmp_path / "cache")
    assert len(store.rows) == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "words"), [(0.4, "free some space"), (0.9, "that are free in")]
)
def test_a_disk_of_less_than_half_is_refused_and_what_is_free_is_printed(
    clips, backbone, tmp_path, monkeypatch, capsys, share, words
):
    store, _ = extraction(clips, backbone, tmp_path / "first")
    needed = sum(
        row.views * row.frames * 3 * 8 * 2 for row in store.rows.values()
    )  # bytes of its numbers
    monkeypatch.setattr(
        "vd.features.extract.shutil.disk_usage",
        lambda path: shutil._ntuple_diskusage(0, 0, int(share * needed)),
    )
    capsys.readouterr()
    if share < 0.5:
        with pytest.raises(VdError, match=words):
            extraction(clips, backbone, tmp_path / "cache")
    else:
        extraction(clips, backbone, tmp_path / "cache")
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("scale", [1e5, 1e-12, float("nan")])
def test_values_that_float16_cannot_hold_are_one_sentence(clips, tmp_path, scale):
    wrong = write_tiny_backbone(tmp_path / "wrong.onnx", scale=scale)
    with pytest.raises(VdError, match="which float16 cannot hold"):
        extraction(clips, wrong, tmp_path / "cache")


@pytest.mark.slow
def test_a_lost_terminal_keeps_what_is_finished(clips, backbone, tmp_path, undisturbed):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    cache = tmp_path / "cache"
    command = [
        sys.executable, script, "extract", "--dataset-path", clips, "--backbone", backbone,
        "--cache-dir", cache, "--decode-workers", "1", "--feature-preset", "best",
    ]  # fmt: skip
    with subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not shards(cache):
            time.sleep(0.002)
        process.send_signal(signal.SIGHUP)
        printed = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGHUP
    assert printed.splitlines()[-1].startswith("vd: interrupted; finished work is kept")
    assert records(extraction(clips, backbone, cache)[0]) == undisturbed
