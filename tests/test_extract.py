"""Extraction: whatever kills, fills or damages it, a rerun ends with the same records."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.broken import noisy_frames, render, render_late, render_paused
from tests.command_line import VD, vd
from tests.fabricated import write_tiny_backbone
from vd.config import BackboneConfig, Config, DataConfig
from vd.data.catalog import identify
from vd.data.decode import FrameSettings, read_header
from vd.data.manifest import read_manifest
from vd.data.workers import decode_videos
from vd.errors import VdError
from vd.features.backbone import find_backbone
from vd.features.extract import extract
from vd.files import read_csv

CHUNK = 4  # videos a shard, so that 32 clips are several
SCRIPT = f"""
import sys
import vd.cli, vd.features.shards
vd.features.shards._MOST_VIDEOS = {CHUNK}
if __name__ == "__main__":
    vd.cli.main()
"""


def extraction(clips, backbone, cache, preset="best"):
    config = Config(
        data=DataConfig(clips, cache), backbone=BackboneConfig(preset, str(backbone))
    )
    videos = identify(read_manifest(config.data).videos, cache)
    return extract(videos, config, find_backbone(config.backbone))


def flags(clips, backbone, cache):
    return [
        "extract", "--dataset-path", clips, "--backbone", backbone, "--cache-dir", cache,
        "--decode-workers", "1", "--feature-preset", "best",
    ]  # fmt: skip


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
def finished(clips, backbone, tmp_path_factory):
    """The cache of an undisturbed extraction into shards of `CHUNK` videos, its records."""
    cache = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vd.features.shards._MOST_VIDEOS", CHUNK)
        store, _ = extraction(clips, backbone, cache)
    return cache, records(store)


@pytest.fixture
def cache(finished, tmp_path):
    """A copy of that cache."""
    return shutil.copytree(finished[0], tmp_path / "cache")


@pytest.fixture
def root(tmp_path):
    """A data set without videos."""
    for name in ("violent", "normal"):
        (tmp_path / "set" / name).mkdir(parents=True)
    return tmp_path / "set"


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(clips, backbone, tmp_path, finished):
    draw = np.random.default_rng(0)
    script, cache = tmp_path / "script.py", tmp_path / "cache"
    script.write_text(SCRIPT)
    command = [sys.executable, script, *flags(clips, backbone, cache)]
    stores = set()
    for _ in range(6):
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
    assert len(stores) > 2  # kills fell between shards
    store, ledger = extraction(clips, backbone, cache)
    assert records(store) == finished[1]
    assert len(ledger.usable()) == 32
    assert not list(store.directory.glob("*.tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    ["index lost", "index cut", "shard lost", "shard cut", "flipped", "swapped"],
)
def test_a_damaged_shard_is_made_again(
    clips, backbone, finished, cache, monkeypatch, capsys, damage
):
    monkeypatch.setattr("vd.features.shards._MOST_VIDEOS", CHUNK)
    (index,) = cache.rglob("index-00002.csv")
    shard = index.with_name("features-videos.array_record-00002")
    content = shard.read_bytes()
    others = {path: path.read_bytes() for path in shard.parent.glob("*-0000[!2]*")}
    if damage == "index lost":
        index.unlink()
    elif damage == "index cut":
        index.write_text(index.read_text()[:500])
    elif damage == "shard lost":
        shard.unlink()
    elif damage == "shard cut":
        shard.write_bytes(content[:-1])
    else:  # of the right size: only reading shows it
        if damage == "flipped":
            middle = content.rindex(b"features") + 100  # inside a record
            flipped = bytes([content[middle] ^ 1])
            shard.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        else:  # another shard's records, whole in themselves
            other = shard.with_name(shard.name[:-1] + "0").read_bytes()
            shard.write_bytes(other[: len(content)].ljust(len(content), b"\0"))
        store, _ = extraction(clips, backbone, cache)
        with pytest.raises(VdError, match=f"{shard.name} is damaged.*delete it"):
            records(store)
        shard.unlink()
    capsys.readouterr()
    store, ledger = extraction(clips, backbone, cache)
    printed = capsys.readouterr().err
    assert "warning: shard 2 of" in printed
    assert f"extracting {CHUNK} videos" in printed
    assert {path: path.read_bytes() for path in others} == others
    assert records(store) == finished[1]
    assert len(ledger.usable()) == 32
    extraction(clips, backbone, cache)
    assert "warning" not in capsys.readouterr().err


def test_with_a_full_cache_no_engine_is_built(clips, backbone, cache, monkeypatch):
    def fail(*_):
        raise AssertionError("an engine was built")

    monkeypatch.setattr("vd.features.extract.make_engine", fail)
    monkeypatch.setattr("vd.features.engines.onnxruntime.InferenceSession", fail)
    (metadata,) = cache.rglob("dataset_info.json")
    content = metadata.read_bytes()
    metadata.unlink()
    _, ledger = extraction(clips, backbone, cache)
    assert len(ledger.usable()) == 32
    assert metadata.read_bytes() == content


def test_a_changed_video_under_the_same_name_is_extracted_again(
    clips, backbone, cache, tmp_path
):
    root = shutil.copytree(clips, tmp_path / "set")
    first, second = sorted(root.glob("train/*/*.mp4"))[:2]
    shutil.copy(second, first)
    store, ledger = extraction(root, backbone, cache)
    ids = {video.path: video.id for video in ledger.usable()}
    assert ids[first] == ids[second]
    assert set(ids.values()) < set(store.rows)  # the former content stays


@pytest.mark.slow
def test_a_read_only_cache_is_used_and_what_it_misses_is_one_sentence(
    clips, backbone, cache
):
    mount = ["mount", "--bind", "-o", "ro", str(cache), str(cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        command = flags(clips, backbone, cache)
        vd(*command)
        (line,) = vd(*command[:-1], "fast", code=2).stderr.splitlines()[-1:]
        assert f"{cache}/" in line
        assert "Read-only" in line
    finally:
        subprocess.run(["umount", str(cache)], check=True)


@pytest.mark.slow
def test_a_second_extractor_waits_and_names_who_holds_the_store(
    clips, backbone, tmp_path
):
    command = [*VD, *map(str, flags(clips, backbone, tmp_path))]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("extracting " in lines for lines in printed) == 1
    for process, lines in zip(both, printed, strict=True):
        if "waiting for " in lines:  # else it began when the other had ended
            (other,) = (p.pid for p in both if p is not process)
            assert f"waiting for an extraction, process {other}" in lines


@pytest.mark.parametrize(
    ("preset", "views", "streams"), [("fast", 1, 2), ("default", 1, 3), ("best", 2, 3)]
)
def test_a_preset_has_its_views_and_streams(backbone, root, preset, views, streams):
    for folder in root.iterdir():
        render(folder / "a.mp4", noisy_frames(20 + len(folder.name)))
    store, _ = extraction(root, backbone, root.parent / "cache", preset)
    for row in store.rows.values():
        plain, *mirrored = (store.read(row.id, view) for view in range(row.views))
        assert len(mirrored) == views - 1
        assert plain.shape == (row.frames, streams * 8)
        assert not any(np.array_equal(plain, other) for other in mirrored)


@pytest.mark.slow
def test_a_file_replaced_while_it_is_decoded_is_not_kept_under_its_former_hash(
    clips, backbone, tmp_path, monkeypatch
):
    root, cache = shutil.copytree(clips / "val", tmp_path / "set"), tmp_path / "cache"
    first, second = sorted(root.glob("*/*.mp4"))[:2]

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
    assert {e.outcome.outcome for e in ledger.entries} == {"used"}


@pytest.mark.slow
def test_progress_shows_frames_a_second_at_every_stretch_of_a_long_video(
    backbone, root, monkeypatch, capsys
):
    monkeypatch.setattr("vd.console._PLAIN_EVERY_SECONDS", 0.0)
    for folder in root.iterdir():
        render(folder / "a.mp4", noisy_frames(480 + len(folder.name)), fps=8)
    extraction(root, backbone, root.parent / "cache", preset="fast")
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if "extracting:" in line]
    assert len(lines) == 2 * 3  # stretches of 30 s, and a rest
    assert "0/2 videos" in lines[0]
    assert re.search(r" \d+ s left", lines[1])
    rates = [int(line.split(" frames/s")[0].split()[-1]) for line in lines]
    assert min(rates) > 0


def promised_and_true(clips, backbone, cache, capsys):
    """Images of the estimate, and those that were made; every file is used."""
    store, ledger = extraction(clips, backbone, cache, preset="fast")
    assert {e.outcome.outcome for e in ledger.entries} <= {"used", "quarantined"}
    printed = re.search(r"about ([\d,]+) images", capsys.readouterr().err)[1]
    true = sum(2 * row.frames for row in store.rows.values())
    return int(printed.replace(",", "")), true


def header_duration(path):
    return read_header(path, FrameSettings()).duration


def test_the_estimate_is_taken_from_all_over_the_manifest(
    clips, backbone, tmp_path, capsys
):
    """Each class has files of its own bytes a second: the first four are of one only."""
    root = shutil.copytree(clips, tmp_path / "set")
    for path in root.rglob("violent/*.mp4"):
        path.write_bytes(path.read_bytes() + bytes(10**6))  # no longer video
    promised, true = promised_and_true(root, backbone, tmp_path / "cache", capsys)
    assert 0.8 * true < promised < 1.35 * true


def test_a_header_that_claims_weeks_does_not_count(backbone, root, capsys):
    assert header_duration(render_late(root / "violent" / "late.mkv")) > 10**6
    render(root / "normal" / "a.mp4", noisy_frames(50))
    promised, true = promised_and_true(root, backbone, root.parent / "cache", capsys)
    assert promised < 2 * true


@pytest.mark.parametrize("live", [False, True])
def test_the_estimate_knows_slow_videos_and_those_without_a_length(
    backbone, root, capsys, live
):
    render(root / "normal" / "a.mp4", noisy_frames(60), fps=1)
    for number in range(4):
        path = root / "violent" / f"{number}.{'webm' if live else 'mp4'}"
        how = {"codec": "libvpx", "live": "1"} if live else {}
        render(path, noisy_frames(60), fps=1, **how)
    assert bool(header_duration(path)) != live
    promised, true = promised_and_true(root, backbone, root.parent / "cache", capsys)
    least, most = (0.3, 3) if live else (0.9, 1.1)
    assert least * true < promised < most * true


@pytest.mark.slow
def test_a_large_file_that_does_not_decode_does_not_count(
    clips, backbone, tmp_path, capsys
):
    root = shutil.copytree(clips / "val", tmp_path / "set")
    with open(root / "violent" / "huge.mp4", "wb") as handle:
        handle.truncate(2**25)
    promised, true = promised_and_true(root, backbone, tmp_path / "cache", capsys)
    assert promised < 2 * true


def test_seconds_and_gaps_are_stored(backbone, root):
    render_paused(root / "violent" / "a.mkv")
    render(root / "normal" / "a.mp4", noisy_frames(50))
    cache = root.parent / "cache"
    store, ledger = extraction(root, backbone, cache)
    (paused,) = (e for e in ledger.entries if e.video.label)
    ((start, length),) = paused.outcome.gaps
    assert (start, length) == pytest.approx((1.0, 60.0))
    seconds_F = store.seconds(paused.video.id)
    assert len(seconds_F) == store.rows[paused.video.id].frames
    assert seconds_F[0] == 0
    assert (np.diff(seconds_F) > 0).all()
    assert np.sum(seconds_F < 1) == pytest.approx(8, abs=1)
    assert seconds_F[seconds_F > 1][0] == pytest.approx(61.0)
    gaps = {row["path"]: row["gaps"] for row in read_csv(cache / "ledger.csv")}
    assert json.loads(gaps.pop("violent/a.mkv")) == [[start, length]]
    assert set(gaps.values()) == {""}


@pytest.mark.slow
def test_without_a_temporary_folder_shared_memory_is_enough(
    clips, backbone, tmp_path, monkeypatch
):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    store, _ = extraction(clips / "val", backbone, tmp_path / "cache")
    assert len(store.rows) == 8


@pytest.mark.slow
def test_a_disk_of_less_than_half_is_refused_and_what_is_free_is_printed(
    clips, backbone, finished, tmp_path, monkeypatch, capsys
):
    needed = sum(len(b"".join(parts[:-1])) for parts in finished[1].values())
    for share, words in ((0.4, "free some space"), (0.9, "that are free in")):
        usage = shutil._ntuple_diskusage(0, 0, int(share * needed))
        monkeypatch.setattr(
            "vd.features.extract.shutil.disk_usage", lambda path, usage=usage: usage
        )
        if share < 0.5:
            with pytest.raises(VdError, match=words):
                extraction(clips, backbone, tmp_path)
        else:
            extraction(clips, backbone, tmp_path)
            assert words in capsys.readouterr().err


@pytest.mark.parametrize("scale", [1e5, 1e-12, float("nan")])
def test_values_that_float16_cannot_hold_are_one_sentence(clips, tmp_path, scale):
    wrong = write_tiny_backbone(tmp_path / "wrong.onnx", scale=scale)
    with pytest.raises(VdError, match="which float16 cannot hold"):
        extraction(clips / "val", wrong, tmp_path / "cache")
