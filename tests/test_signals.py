"""A signal sets a flag; work stops where it asks, with one sentence and 128 + its number."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.broken import noisy_frames, render, render_slow
from tests.command_line import SMALL, VD
from vd import console
from vd.data.catalog import Catalog
from vd.files import read_csv
from vd.training.log import read_metrics

SECONDS = 5  # between a signal and the end: 2 on an idle machine, with some to spare

SCRIPT = """
import os, signal, sys, time
from concurrent.futures import Future
from vd.cli import run_command
from vd.console import check_interrupt, holding_interrupts, interrupted, result_of, track

def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)

def echoed():
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    print("not yet")
    check_interrupt()

def impatient():
    send(signal.SIGTERM)
    time.sleep(1.2)
    send(signal.SIGHUP)
    print("still here")

def between_items():
    with track("work", 3, "items") as ticker:
        ticker.advance()
        send(signal.SIGINT)
        print("item 2 is done")
        ticker.advance()
        print("item 3 is done")

def waiting():
    send(signal.SIGINT)
    result_of(Future())

def held():
    with holding_interrupts():
        send(signal.SIGINT)
        check_interrupt()
        print("held", int(interrupted()))
    check_interrupt()

def finished():
    send(signal.SIGINT)
    return 0

def ignored():
    send(signal.SIGHUP)
    check_interrupt()
    return 0

signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "ignored" else signal.SIG_DFL)
run_command(globals()[sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("what", "code", "printed"),
    [
        ("echoed", 143, "not yet\n"),
        ("impatient", 129, ""),
        ("between_items", 130, "item 2 is done\n"),
        ("waiting", 130, ""),
        ("held", 130, "held 2\n"),
        ("finished", 0, ""),
        ("ignored", 0, ""),
    ],
)
def test_a_signal_ends_a_command_where_it_asks(what, code, printed, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "script", what], cwd=tmp_path, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stdout == printed
    assert "Traceback" not in done.stderr
    interrupted = code > 0 and what != "impatient"
    assert ("vd: interrupted; finished work is kept" in done.stderr) == interrupted


def test_outside_the_command_line_ctrl_c_is_pythons_own():
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert not console.interrupted()
    console.check_interrupt()


def interrupt(command, ready, number=signal.SIGINT):
    """Run a command, send a signal once `ready()`; returns what it printed and its delay."""
    arguments = [*VD, *map(str, command)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None and not ready():
            time.sleep(0.05)
        process.send_signal(number)
        sent = time.monotonic()
        printed = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number, printed
        assert "vd: interrupted; finished work is kept" in printed
        assert "Traceback" not in printed
        return printed, time.monotonic() - sent


@pytest.fixture(scope="module")
def slow_set(tmp_path_factory):
    """Seven short clips, and one of minutes that comes last."""
    root = tmp_path_factory.mktemp("slow") / "set"
    for number in range(7):
        folder = root / ("fight" if number % 2 else "normal")
        folder.mkdir(parents=True, exist_ok=True)
        render(folder / f"{number}.mp4", noisy_frames(40 + number))
    render_slow(root / "normal" / "slow.mkv", 30_000)
    return root


def outcomes(cache):
    """How many outcomes of videos are kept."""
    return len(Catalog(cache).outcomes()) if (cache / "catalog.sqlite").exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["scan", "audit"])
def test_an_interrupt_while_decoding_loses_no_outcome(verb, slow_set, tmp_path):
    cache = tmp_path / "cache"
    where = ["--dataset-path", slow_set, "--cache-dir", cache]
    command = [verb, *where, "--report-dir", tmp_path / "report"]
    _, seconds = interrupt(command, lambda: outcomes(cache) >= 3)
    assert seconds < SECONDS
    assert outcomes(cache) >= 3


@pytest.mark.slow
def test_an_interrupted_extraction_keeps_what_it_has(slow_set, backbone, tmp_path):
    cache = tmp_path / "cache"
    command = [
        "extract", "--dataset-path", slow_set, "--cache-dir", cache, "--backbone", backbone,
        "--feature-preset", "best",
    ]  # fmt: skip
    _, seconds = interrupt(command, lambda: any(cache.rglob("*.array_record-*")))
    assert seconds < SECONDS
    rows = [row for path in cache.rglob("index-*.csv") for row in read_csv(path)]
    assert 0 < len(rows) < 8


@pytest.mark.slow
def test_an_interrupt_ends_hashing_and_keeps_what_is_hashed(tmp_path):
    root, cache = tmp_path / "set", tmp_path / "cache"
    for name in ("fight/0.mp4", "fight/1.mp4", "normal/endless.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    os.truncate(root / name, 1 << 40)  # hours of hashing, and no byte of disk
    catalog, query = Catalog(cache), "SELECT path FROM hashes"
    where = ["--dataset-path", root, "--cache-dir", cache]
    command = ["scan", *where, "--report-dir", tmp_path / "report"]
    _, seconds = interrupt(command, lambda: len(catalog.select(query)) == 2)
    assert seconds < SECONDS
    names = {Path(os.fsdecode(path)).name for (path,) in catalog.select(query)}
    assert names == {"0.mp4", "1.mp4"}


@pytest.mark.slow
def test_interrupted_training_saves_the_current_step(clips, backbone, tmp_path):
    run = tmp_path / "run"
    command = [
        "train", "--dataset-path", clips, "--backbone", backbone, "--cache-dir",
        tmp_path / "cache", "--checkpoint-dir", run, "--no-mixed-precision",
        *SMALL, "--epochs", "500",
    ]  # fmt: skip
    printed, seconds = interrupt(
        command, lambda: len(read_metrics(run)) >= 3, signal.SIGTERM
    )
    assert seconds < SECONDS
    step = int(re.search(r"stopped after step (\d+)", printed)[1])
    again, _ = interrupt(command, lambda: len(read_metrics(run)) >= step // 2 + 3)
    assert f"continuing from step {step}, " in again
