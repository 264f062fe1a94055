"""Several processes over loopback: the result of one, and an end for all when one ends.

Every process is waited for with a bound, and killed after it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from tests.command_line import VD, vd, vd_process
from tests.fabricated import make_set, make_videos, metrics_without_timing
from vd.config import RunConfig, TrainingConfig
from vd.errors import VdError
from vd.evaluation.evaluate import restore
from vd.files import read_csv
from vd.training.batches import training_batches
from vd.training.distributed import several
from vd.training.log import read_metrics

EPOCHS = 20
SETTINGS = (
    f"--epochs {EPOCHS} --batch-size 8 --warmup-epochs 1 --projection-size 16 --hidden-size 8 "
    "--early-stopping-patience 50 --no-mixed-precision --feature-preset best"
).split()
LOST_SECONDS = 60  # within which a lost process ends the other
SLURM_PORTS = range(61440, 65536)  # from which JAX takes the job's
SECONDS = 240  # for anything else, on a loaded machine


def free_port(among=(0,)):
    """A port that nobody has; 0 stands for any."""
    for port in among:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return free.getsockname()[1]
    raise AssertionError("no port is free")


def by_flags(port, index):
    """Flags and environment of a process that is given all three values."""
    flags = ["--coordinator-address", f"127.0.0.1:{port}", "--num-processes", "2"]
    return [*flags, "--process-id", str(index)], {}


def by_slurm(port, index):
    """The same for a task of Slurm's, whose job number makes the port."""
    values = {"JOB_ID": port - SLURM_PORTS[0], "STEP_NODELIST": "localhost", "NTASKS": 2,
            "PROCID": index, "LOCALID": index}  # fmt: skip
    return ["--coordinator-address", "auto"], {
        f"SLURM_{key}": str(value) for key, value in values.items()
    }


class Pair:
    """Two processes of one run; `extra` are flags of process 1 alone."""

    def __init__(self, arguments, folder, extra=(), how=by_flags):
        port = free_port(SLURM_PORTS if how is by_slurm else (0,))
        self.logs = [folder / f"process-{index}.log" for index in (0, 1)]
        self.processes = []
        for index, log in enumerate(self.logs):
            flags, environment = how(port, index)
            command = [*VD, *arguments, *flags, *(extra if index else ())]
            with log.open("w") as stream:
                process = subprocess.Popen(
                    list(map(str, command)), stdout=stream, stderr=stream,
                    env=os.environ | environment,
                )  # fmt: skip
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait(10)

    def wait(self, seconds=SECONDS):
        """The exit codes; fails when a process does not end in time."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self.processes:
                process.wait(max(deadline - time.monotonic(), 0))
        codes = [process.poll() for process in self.processes]
        assert None not in codes, self.printed()
        return codes

    def printed(self):
        return "\n".join(log.read_text() for log in self.logs)

    def errors(self, index):
        """The lines in which a process named an error."""
        lines = self.logs[index].read_text().splitlines()
        return [line for line in lines if line.startswith("vd: ")]

    def wait_for_epochs(self, run, more):
        """Wait until the run has that many more epochs than when this was called."""
        goal, deadline = len(read_metrics(run)) + more, time.monotonic() + SECONDS
        while len(read_metrics(run)) < goal:
            assert time.monotonic() < deadline, self.printed()
            assert [p.poll() for p in self.processes] == [None, None], self.printed()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, clips, backbone):
    """The run of one process with two devices, and the flags of one in another folder."""
    root = tmp_path_factory.mktemp("one")

    def arguments(folder):
        return [
            "train", "--dataset-path", clips, "--cache-dir", root / "cache",
            "--checkpoint-dir", folder / "run", "--backbone", backbone, *SETTINGS,
        ]  # fmt: skip

    vd_process(*arguments(root), "--devices", "2", timeout=SECONDS)
    return root, lambda folder: [*arguments(folder), "--devices", "1"]


def assert_same_run(one, other):
    """Two runs are equal within 1e-5, but for what a clock gave."""
    lines = list(map(metrics_without_timing, (one, other)))
    assert [len(line) for line in lines] == [EPOCHS] * 2
    for first, second in zip(*lines, strict=True):
        assert first == pytest.approx(second, abs=1e-5)
    params = [jax.tree.leaves(restore(f / "run").params) for f in (one, other)]
    for first, second in zip(*params, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)
    probabilities = [
        [float(row["probability"]) for row in read_csv(f / "run/predictions_test.csv")]
        for f in (one, other)
    ]
    np.testing.assert_allclose(*probabilities, atol=1e-5)


@pytest.mark.slow
def test_two_processes_give_what_one_with_two_devices_gives(unbroken, tmp_path):
    root, arguments = unbroken
    with Pair(arguments(tmp_path), tmp_path) as pair:
        assert pair.wait() == [0, 0], pair.printed()
    assert_same_run(tmp_path, root)
    assert "training on 16 clips, 2 × cpu" in pair.logs[0].read_text()
    assert "training on" not in pair.logs[1].read_text()
    with Pair(arguments(tmp_path), tmp_path, how=by_slurm) as pair:
        assert pair.wait() == [0, 0], pair.printed()
    assert "is finished; nothing to do" in pair.logs[0].read_text()


@pytest.mark.slow
def test_whatever_ends_one_process_ends_both_and_the_run_goes_on(unbroken, tmp_path):
    root, arguments = unbroken
    run = tmp_path / "run"
    for number, index in [
        (signal.SIGKILL, 1),
        (signal.SIGTERM, 1),
        (signal.SIGKILL, 0),
    ]:
        with Pair(arguments(tmp_path), tmp_path) as pair:
            pair.wait_for_epochs(run, 2)
            pair.processes[index].send_signal(number)
            codes = pair.wait(LOST_SECONDS)
        if number == signal.SIGKILL:
            assert codes[index] == -number
            assert codes[1 - index] != 0
        else:
            assert codes == [128 + number] * 2, pair.printed()
            assert "Traceback" not in pair.printed()
            for words in map(pair.errors, (0, 1)):
                assert len(words) == 1
                assert "interrupted; finished work is kept" in words[0]
            assert "stopped after step" in pair.logs[0].read_text()
        assert len(read_metrics(run)) < EPOCHS
    with Pair(arguments(tmp_path), tmp_path) as pair:
        assert pair.wait() == [0, 0], pair.printed()
    assert "continuing from step" in pair.logs[0].read_text()
    assert_same_run(tmp_path, root)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "of_second", "ended", "words"),
    [
        (["--cache-dir", "new"], [], None, "has no features of 32 of 32 videos"),
        ([], ["--seed", "5"], 1, "training.seed is 0 there, 5 here"),
    ],
)
def test_missing_features_or_other_settings_end_both(
    unbroken, tmp_path, more, of_second, ended, words
):
    _, arguments = unbroken
    more = [str(tmp_path / word) if word == "new" else word for word in more]
    with Pair([*arguments(tmp_path), *more], tmp_path, of_second) as pair:
        codes = pair.wait(LOST_SECONDS)
    assert 0 not in codes
    named = codes.index(2) if ended is None else ended
    (line,) = pair.errors(named)
    assert words in line


def test_each_process_makes_its_rows_of_every_batch(tmp_path):
    data = make_set(tmp_path, make_videos(12))
    settings = TrainingConfig(epochs=2, batch_size=4)

    def batches(rows=None):
        return training_batches(data, settings, 8, 4, first_step=1, rows=rows)

    parts = [batches(range(2)), batches(range(2, 4))]
    made = list(zip(batches(), *parts, strict=True))
    assert len(made) == 5
    for whole, first, second in made:
        assert first.labels_B.shape == second.labels_B.shape == (1, 2)
        for arrays in zip(whole, first, second, strict=True):
            together = np.concatenate(arrays[1:], axis=1)
            np.testing.assert_array_equal(arrays[0], together)


@pytest.mark.parametrize(
    ("address", "count", "index"),
    [
        (None, 2, None), ("here:1", 2, None), ("here:1", 2, 2),
        ("here", 2, 1), (":1", 2, 1), ("here:", 2, 1), ("here:port", 2, 1),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_named(address, count, index):
    run = RunConfig(coordinator_address=address, num_processes=count, process_id=index)
    with pytest.raises(VdError, match=f"--process-id {index} do not fit together"):
        several(run)


def test_an_allocation_alone_makes_no_several_processes(monkeypatch):
    for name in ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"):
        monkeypatch.setenv(f"SLURM_{name}", "2")
    assert not several(RunConfig())
    assert not several(RunConfig(num_processes=1, process_id=0))
    assert several(RunConfig(coordinator_address="auto"))
    assert several(RunConfig("run", 1, "[::1]:1234", num_processes=2, process_id=1))


def test_a_sweep_is_refused_and_a_batch_must_divide(clips, tmp_path):
    where = ["--dataset-path", clips, "--checkpoint-dir", tmp_path / "run"]
    flags = "--coordinator-address localhost:1 --num-processes 2 --process-id 0".split()
    for command in (["sweep"], ["crossval"], ["crossval", "--adapt"], ["adapt"]):
        assert "--num-processes" in vd(*command, *where, *flags, code=2).stderr
    done = vd("train", *where, *flags, "--batch-size", "9", code=2)
    assert "--batch-size 9 does not divide over 2 devices" in done.stderr
