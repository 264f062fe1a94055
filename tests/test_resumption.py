"""A run that is killed or stopped anywhere, and goes on, equals an unbroken one to the bit.

The runs are processes of their own. In them a thread ends the process at a random time
after a step, an evaluation or the write of a checkpoint has begun; where that was is read
afterwards from counters in a mapped file, and from the remains of the write.
"""

import os
import random
import signal
import sys
import threading
import time
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import jax
import numpy as np
import pytest

from tests.fabricated import (
    DIM,
    STREAMS,
    metrics_without_timing,
    numbers_config,
    same_leaves,
    train_on_numbers,
)
from vd.cli import run_command
from vd.devices import prepare_jax
from vd.models.plugins import BUILT_IN
from vd.training import loop
from vd.training.checkpoints import Checkpoints
from vd.training.log import EpochSums
from vd.training.loop import begin

pytestmark = pytest.mark.slow

EPOCHS, STEPS, VAL = 20, 4, 150
PLACES = "step", "evaluation", "write"
KILLS = 10
DEVICES = 2


class Ending(NamedTuple):
    """A signal to the process, some seconds after the so-many-th begin of a place."""

    number: int
    place: str
    ordinal: int
    share: float  # of the seconds that the place takes


class Places:
    """How often each place was begun and ended, and its seconds, in a mapped file."""

    def __init__(self, folder, mode="r+"):
        file = folder / "places"
        self.counts = np.memmap(file, np.float64, mode, shape=(3, len(PLACES)))
        self.began = {}

    def begin(self, place):
        self.counts[0, PLACES.index(place)] += 1
        self.began[place] = time.monotonic()

    def end(self, place):
        self.counts[1, PLACES.index(place)] += 1
        self.counts[2, PLACES.index(place)] = time.monotonic() - self.began[place]

    def begun(self, place):
        return int(self.counts[0, PLACES.index(place)])

    def inside(self):
        """The places begun and not ended."""
        return {p for p, (a, b, _) in zip(PLACES, self.counts.T, strict=True) if a > b}


def around(owner, name, before=None, after=None):
    """Have a method of a class call `before` and `after` too."""
    method = getattr(owner, name)

    def wrapped(*arguments):
        if before:
            before()
        result = method(*arguments)
        if after:
            after()
        return result

    setattr(owner, name, wrapped)


def watch_training(places, begin):
    """Have this process call `begin` at each place that training reaches, and end it."""
    make_batches = loop.training_batches

    def watched_batches(*arguments):
        for batch in make_batches(*arguments):
            begin("step")
            yield batch

    def end_write():
        if "write" in places.inside():
            places.end("write")

    loop.training_batches = watched_batches
    around(EpochSums, "add", None, lambda: places.end("step"))
    evaluation = partial(begin, "evaluation"), partial(places.end, "evaluation")
    around(loop.Validation, "metrics", *evaluation)
    around(Checkpoints, "save", None, lambda: begin("write"))
    around(Checkpoints, "wait", None, end_write)


def _child(folder, ending, seconds):
    """Train in `folder`, write the result; or end as `ending` says."""
    prepare_jax(DEVICES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    sys.setswitchinterval(1e-4)
    places = Places(folder, "w+")

    def strike():
        time.sleep(ending.share * seconds[ending.place])
        os.kill(os.getpid(), ending.number)

    def begin_place(place):
        places.begin(place)
        if ending and place == ending.place and places.begun(place) == ending.ordinal:
            threading.Thread(target=strike, daemon=True).start()

    watch_training(places, begin_place)

    def command():
        params = train_on_numbers(folder, EPOCHS, DEVICES, VAL)
        arrays = {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }
        np.savez(folder / "result.npz", **arrays)
        return 0

    run_command(command)


def call(folder, ending=None, seconds=None):
    """One process; returns its exit code."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["vd.training.loop", "vd.features.store", "vd.cli"])
    process = context.Process(target=_child, args=(folder, ending, seconds))
    process.start()
    process.join()
    return process.exitcode


def result(folder):
    with np.load(folder / "result.npz") as arrays:
        return metrics_without_timing(folder), dict(arrays)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What an unbroken run gives, and the seconds of its places."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert call(folder) == 0
    places = Places(folder)
    assert places.inside() == set()
    return result(folder), dict(zip(PLACES, places.counts[2], strict=True))


def where(folder):
    """Where the process in `folder` ended."""
    inside = Places(folder).inside() - {"write"}
    if list((folder / "run" / "checkpoints").glob("*tmp*")):
        inside.add("write")  # what orbax renames when it is whole
    return inside


def steps_done(folder):
    """The number of steps in the newest checkpoint."""
    config = numbers_config(folder, EPOCHS)
    first = begin(config, STREAMS * DIM, BUILT_IN)
    with Checkpoints(folder / "run", read_only=True) as checkpoints:
        return int(checkpoints.restore_last(first.state).state.step)


def test_kills_anywhere_change_nothing(tmp_path, unbroken):
    expected, seconds = unbroken
    draw = random.Random(2)
    endings = [
        Ending(
            signal.SIGKILL,
            PLACES[i % 3],
            draw.randint(1, STEPS + 2 if PLACES[i % 3] == "step" else 2),
            draw.uniform(0, 0.9),
        )
        for i in range(KILLS)
    ]
    fell = []
    for ending in endings:
        assert call(tmp_path, ending, seconds) == -signal.SIGKILL
        fell.append(where(tmp_path))
        assert len(metrics_without_timing(tmp_path)) < EPOCHS
    assert set().union(*fell) == set(PLACES), fell
    assert call(tmp_path) == 0
    lines, arrays = result(tmp_path)
    assert lines == expected[0]
    assert same_leaves(arrays, expected[1])


def test_a_stopped_run_loses_no_step_and_changes_nothing(tmp_path, unbroken):
    expected, seconds = unbroken
    before = 0
    for ending in (
        Ending(signal.SIGTERM, "step", 2, 0.5),
        Ending(signal.SIGINT, "evaluation", 1, 0.5),
        Ending(signal.SIGTERM, "write", 2, 0.5),
        Ending(signal.SIGINT, "step", 1, 0.5),
    ):
        assert call(tmp_path, ending, seconds) == 128 + ending.number
        before += Places(tmp_path).begun("step")
        assert steps_done(tmp_path) == before  # all that were begun
        assert where(tmp_path) == set()
    assert call(tmp_path) == 0
    lines, arrays = result(tmp_path)
    assert lines == expected[0]
    assert same_leaves(arrays, expected[1])
