"""Extraction: whatever kills, fills or damages it, a rerun ends with the same records."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.command_line import VD, vd
from vd.config import (
    BackboneConfig,
    Config,
    DataConfig,
)
from vd.features.backbone import find_backbone
from vd.features.compute import open_store
from vd.features.extract import extract
from vd.features.verify import verify_store
from vd.videos.hashes import identify
from vd.videos.manifest import read_manifest

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
    videos = identify(read_manifest(config.data).videos, cache / "hashes.csv")
    return extract(videos, config, verify)


def shards(cache):
    """Number of finished shards."""
    return len(list(cache.glob("features/*/*/index-*.csv")))


def records(store):
    """The checksum of each video's records as its index has it, and its features."""
    return {
        row.id: (
            row.sha256,
            [store.read(row.id, v).tobytes() for v in range(row.views)],
        )
        for row in store.rows.values()
    }


@pytest.fixture(scope="module")
def undisturbed(clips, backbone, tmp_path_factory):
    store, _ = extraction(clips, backbone, tmp_path_factory.mktemp("undisturbed"))
    return records(store)


def test_20_kills_at_random_moments_change_no_byte(
    clips, backbone, tmp_path, undisturbed
):
    draw = np.random.default_rng(0)
    script, cache = tmp_path / "script.py", tmp_path / "cache"
    script.write_text(SCRIPT)
    command = [
        sys.executable, script, "extract", "--dataset-path", clips, "--backbone", backbone,
        "--cache-dir", cache, "--decode-workers", "1", "--feature-preset", "best",
    ]  # fmt: skip
    stores = set()
    for _ in range(20):
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        wanted = shards(cache) + draw.integers(3)  # 0: before the next one, imports too
        while process.poll() is None and shards(cache) < wanted:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3) if wanted else draw.uniform(0, 2))
        if process.poll() is None:
            process.kill()
        elif not process.returncode:
            shutil.rmtree(cache)  # done: the next one begins anew
        process.wait()
        stores.add(shards(cache))
    assert len(stores) > 3  # kills fell between shards
    store, ledger = extraction(clips, backbone, cache)
    assert records(store) == undisturbed
    assert len(ledger.usable()) == 32
    assert not list(store.directory.glob("*.tmp-*"))
    assert not verify_store(store, [])


@pytest.mark.parametrize("damage", ["flipped", "cut", "zeroed", "missing", "swapped"])
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
    elif damage == "cut":
        shard.write_bytes(content[:middle])
    elif damage == "zeroed":
        shard.write_bytes(content[:middle] + bytes(300) + content[middle + 300 :])
    elif damage == "missing":
        shard.unlink()
    else:  # another shard's records, whole in themselves
        shutil.copy(shard.with_name(shard.name[:-1] + "0"), shard)
    capsys.readouterr()
    store, ledger = extraction(clips, backbone, tmp_path, verify=True)
    said = capsys.readouterr().err
    assert "have damaged records" in said
    assert records(store) == undisturbed
    assert len(ledger.usable()) == 32
    extraction(clips, backbone, tmp_path, verify=True)
    assert "are as they were written" in capsys.readouterr().err


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


def test_a_second_extractor_is_told_who_holds_the_store(clips, backbone, tmp_path):
    arguments = [
        "extract", "--dataset-path", str(clips), "--backbone", str(backbone),
        "--cache-dir", str(tmp_path), "--decode-workers", "1",
    ]  # fmt: skip
    both = [
        subprocess.Popen([*VD, *arguments], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 2])  # 0, 0: one began when the other had ended
    if codes == [0, 2]:
        (refused,) = (s for p, s in zip(both, said, strict=True) if p.returncode)
        assert f"process {next(p.pid for p in both if not p.returncode)}" in refused


def test_mirrored_view_is_the_plain_view_of_the_mirrored_images(
    clips, backbone, tmp_path
):
    store, ledger = extraction(clips, backbone, tmp_path)
    video = ledger.usable()[0]
    plain, mirrored = store.read(video.id, 0), store.read(video.id, 1)
    assert plain.shape == mirrored.shape == (store.rows[video.id].frames, 24)
    assert not np.array_equal(plain, mirrored)


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
