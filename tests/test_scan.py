"""Scanning: what is finished is kept, whatever ends the scan."""

import signal
import subprocess
import time

from tests.broken import noisy_frames, render, render_slow
from tests.command_line import VD
from vd.config import DataConfig, DecodeConfig
from vd.tables import read_csv
from vd.videos.hashes import identify
from vd.videos.manifest import read_manifest
from vd.videos.scan import OutcomeLog, scan


def make_set(root):
    for name in ("fight", "normal"):
        (root / name).mkdir(parents=True)
    for number in range(4):
        render(root / "fight" / f"{number}.mp4", noisy_frames(40 + number))
    return root


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    root = make_set(tmp_path / "set")
    render_slow(root / "normal" / "slow.mkv", 3000)
    arguments = ["--dataset-path", str(root), "--cache-dir", str(tmp_path / "cache")]
    process = subprocess.Popen(
        [*VD, "scan", *arguments, "--report-dir", str(tmp_path / "report")],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "cache" / "outcomes.csv"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and len(read_csv(log)) > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert [row["outcome"] for row in read_csv(log)] == ["used"] * 4


def test_a_line_that_a_kill_cut_is_scanned_again(tmp_path):
    root = make_set(tmp_path / "set")
    render(root / "normal" / "a.mp4", noisy_frames(50))
    data = DataConfig(root, tmp_path / "cache")
    videos = identify(read_manifest(data).videos, tmp_path / "cache" / "hashes.csv")
    ledger = scan(videos, data, DecodeConfig())
    log = tmp_path / "cache" / "outcomes.csv"
    whole = log.read_bytes()
    log.write_bytes(whole[:-3])  # h264 becomes h2
    assert len(OutcomeLog(tmp_path / "cache").known) == 4
    assert scan(videos, data, DecodeConfig()) == ledger
