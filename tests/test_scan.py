"""Scanning: what is finished is kept, whatever ends the scan."""

import cv2
import pytest

from tests.broken import noisy_frames, render
from tests.command_line import vd
from tests.unprivileged import open_folder, unprivileged
from vd.config import BackboneConfig, Config, DataConfig, DecodeConfig
from vd.data.catalog import Catalog, identify
from vd.data.fingerprints import fingerprint_videos
from vd.data.ledger import scan
from vd.data.manifest import read_manifest
from vd.data.workers import decode_videos
from vd.features.backbone import find_backbone
from vd.features.extract import extract
from vd.files import read_csv


def make_set(root):
    for name in ("fight", "normal"):
        (root / name).mkdir(parents=True)
    for number in range(4):
        render(root / "fight" / f"{number}.mp4", noisy_frames(40 + number))
    return root


def test_a_class_without_a_file_is_named_after_the_scan(tmp_path):
    root, report = make_set(tmp_path / "set"), tmp_path / "report"
    where = "--dataset-path", root, "--cache-dir", tmp_path / "cache"
    done = vd("scan", *where, "--report-dir", report, code=2)
    assert "has no nonviolent clip" in done.stderr
    assert len(read_csv(report / "scan.csv")) == 4


def test_hashing_shows_how_far_it_is(tmp_path, monkeypatch, capsys):
    root, cache = make_set(tmp_path / "set"), tmp_path / "cache"
    (root / "normal" / "a.mp4").write_bytes(b"a")
    monkeypatch.setattr("vd.console._PLAIN_EVERY_SECONDS", 0.0)
    videos = read_manifest(DataConfig(root, cache)).videos
    identify(videos, cache)
    assert "hashing: 5/5 files, " in capsys.readouterr().err
    identify(videos, cache)
    assert capsys.readouterr().err == ""


def scanned(root, cache, **settings):
    """Outcome and reason of each file, by name."""
    data = DataConfig(root, cache)
    videos = identify(read_manifest(data).videos, cache)
    return outcomes_of(scan(videos, data, DecodeConfig(**settings)))


def outcomes_of(ledger):
    return {e.video.name: (e.outcome.outcome, e.outcome.reason) for e in ledger.entries}


def test_files_that_only_ffmpeg_knows_are_used_and_probed_once(tmp_path, monkeypatch):
    root, cache = tmp_path / "set", tmp_path / "cache"
    for name in ("fight", "noFight"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            render(root / name / f"{number}.mp4", noisy_frames(40 + number))
    for number in range(11):
        render(root / "fight" / f"{number}.h264", noisy_frames(30 + number))
    (root / "fight" / "0.h264").rename(root / "fight" / "a.dav")
    (root / "fight" / "1.h264").rename(root / "noFight" / "a")
    cv2.imwrite(str(tmp_path / "a.jpg"), next(noisy_frames(1)))
    (tmp_path / "a.jpg").rename(root / "noFight" / "picture")
    (root / "noFight" / "The").write_text("The free text")  # as an MP4 begins
    (root / "noFight" / "empty.nut").touch()
    (root / "noFight" / "dangling").symlink_to(root / "nowhere")
    (root / "noFight" / "text.h264").write_text("no stream at all\n" * 1000)
    outcomes = scanned(root, cache)
    assert sum(name.startswith("fight/") for name in outcomes) == 13
    assert len(outcomes) == 17
    assert set(outcomes.values()) == {USED}
    ignored = "The", "dangling", "empty.nut", "picture", "text.h264"
    monkeypatch.setattr("vd.data.workers.read_headers", None)  # none is left to probe
    assert scanned(root, cache) == outcomes
    manifest = read_manifest(DataConfig(root, cache))
    assert manifest.ignored == tuple(f"noFight/{name}" for name in ignored)


USED, MISSING = ("used", ""), ("quarantined", "missing")


def with_copies(root):
    """The set with a copy of a fight before it by name, and one after it."""
    make_set(root)
    render(root / "normal" / "a.mp4", noisy_frames(50))
    for name in ("fight/0-copy.mp4", "fight/9.mp4"):
        (root / name).write_bytes((root / "fight" / "0.mp4").read_bytes())
    return root


@pytest.mark.parametrize("gone", ["fight/0-copy.mp4", "fight/9.mp4"])
@pytest.mark.parametrize("work", [scan, fingerprint_videos, extract])
def test_a_copy_that_vanishes_during_the_work_takes_no_other_with_it(
    tmp_path, monkeypatch, backbone, work, gone
):
    root = with_copies(tmp_path / "set")
    data = DataConfig(root, tmp_path / "cache")
    config = Config(data, backbone=BackboneConfig("best", str(backbone)))

    def ledger(videos):
        if work is scan:
            return scan(videos, data, DecodeConfig())
        if work is extract:
            return extract(videos, config, find_backbone(config.backbone))[1]
        return fingerprint_videos(videos, data, DecodeConfig())[0]

    def vanishing(paths, *arguments, **options):
        (root / gone).unlink(missing_ok=True)  # all is listed and looked at
        return decode_videos(paths, *arguments, **options)

    for module in ("vd.data.ledger", "vd.features.extract"):
        monkeypatch.setattr(f"{module}.decode_videos", vanishing)
    videos = identify(read_manifest(data).videos, tmp_path / "cache")
    outcomes = outcomes_of(ledger(videos))
    assert outcomes.pop(gone) == (MISSING if gone == videos[0].name else USED)
    assert set(outcomes.values()) == {USED}  # a copy is decoded once
    (root / gone).write_bytes((root / "fight" / "1.mp4").read_bytes())
    assert outcomes_of(ledger(videos))[gone] == USED  # back again


def test_no_permission_to_read_concerns_one_path_and_is_not_kept():
    with open_folder() as folder:
        check_rights(folder)


def check_rights(folder):
    root, cache = make_set(folder / "set"), folder / "cache"
    render(root / "normal" / "a.mp4", noisy_frames(50))
    first = scanned(root, cache)
    assert set(first.values()) == {USED}
    clip = root / "fight" / "0.mp4"
    clip.chmod(0)
    kept = Catalog(cache).outcomes()
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o777)
    with unprivileged():
        assert scanned(root, cache)["fight/0.mp4"] == ("quarantined", "unreadable")
        assert Catalog(cache).outcomes() == kept
    clip.chmod(0o644)
    assert scanned(root, cache) == first
