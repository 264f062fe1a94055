"""Checkpoints that are torn, damaged or have no room."""

import contextlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fabricated import metrics_without_timing, same_leaves, train_on_numbers
from vd.errors import VdError
from vd.training.checkpoints import Checkpoint, Checkpoints
from vd.training.log import EarlyStopping, EpochSums
from vd.training.step import TrainState

# of a second array that tensorstore cannot read orbax hears after it has closed its event
# loop; Python prints that as unraisable
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
EPOCHS = 3


def checkpoint(epoch, size=300, sums=None):
    """A small checkpoint; each of its numbers depends on the epoch."""
    state = TrainState(
        np.array(4 * epoch, np.int32),
        {"w": np.full((size, 8), epoch, np.float32), "b": np.arange(8.0) + epoch},
        ({"mu": np.full((size, 8), -epoch, np.float32)},),
    )
    stopping = EarlyStopping("val_loss", 9, 0.0, 1, 0.5 + epoch, epoch)
    return Checkpoint(state, stopping, sums or EpochSums())


def write(folder, epochs):
    with Checkpoints(folder) as checkpoints:
        for epoch in epochs:
            checkpoints.save(checkpoint(epoch))


def restored(folder):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore_last(checkpoint(1).state)


def same(a, b):
    return (
        same_leaves(a.state, b.state) and a.stopping == b.stopping and a.sums == b.sums
    )


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write(folder, [1, 2, 3])
    return folder


def files(whole):
    newest = whole / "checkpoints" / "3"
    return sorted(p.relative_to(whole) for p in newest.rglob("*") if p.is_file())


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_any_damaged_file_gives_the_same_state_or_the_one_before_and_says_so(
    whole, tmp_path, capsys, damage
):
    fell_back = 0
    for number, name in enumerate(files(whole)):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        damage(folder / name)
        at = restored(folder)
        printed = capsys.readouterr().err
        if same(at, checkpoint(3)):  # a file that holds nothing of the state
            continue
        assert same(at, checkpoint(2)), name
        assert "damaged" in printed, name
        fell_back += 1
    assert fell_back >= 5
    write(folder, [3])  # and the epoch can be written again
    assert same(restored(folder), checkpoint(3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_on_numbers(folder, EPOCHS)


def test_a_flipped_byte_in_a_run_is_found_and_said_and_changes_nothing(
    trained, tmp_path, capsys
):
    shutil.copytree(trained[0], tmp_path / "copy")
    newest = tmp_path / "copy" / "run" / "checkpoints" / str(EPOCHS)
    flip(max(newest.glob("params/d/*"), key=lambda p: p.stat().st_size))
    resumed = train_on_numbers(tmp_path / "copy", EPOCHS)
    assert "damaged" in capsys.readouterr().err
    assert (newest.parent / f"damaged-{EPOCHS}").is_dir()  # set aside, not deleted
    expected = metrics_without_timing(trained[0])
    assert metrics_without_timing(tmp_path / "copy") == expected
    assert same_leaves(resumed, trained[1])


@pytest.mark.parametrize("resumed", [False, True])
def test_the_best_that_the_checkpoint_before_names_is_kept_too(resumed, tmp_path):
    def at(epoch, best):
        made = checkpoint(epoch)
        return replace(made, stopping=replace(made.stopping, best_epoch=best))

    ends = [at(1, 1), at(2, 2), at(3, 2), at(4, 2), at(5, 2), at(6, 6)]
    with Checkpoints(tmp_path) as checkpoints:
        for made in ends if not resumed else ends[:4]:
            checkpoints.save(made)
    if resumed:
        with Checkpoints(tmp_path) as checkpoints:
            assert same(checkpoints.restore_last(ends[0].state), ends[3])
            for made in ends[4:]:
                checkpoints.save(made)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"2", "5", "6"}
    for path in (tmp_path / "checkpoints" / "6" / "params").glob("d/*"):
        flip(path)
    assert same(restored(tmp_path), ends[4])


def test_a_damaged_best_checkpoint_is_an_error_not_another_model(trained, tmp_path):
    folder, params = trained
    shutil.copytree(folder / "run" / "checkpoints", tmp_path / "checkpoints")
    rows = metrics_without_timing(folder)
    best = min(rows, key=lambda row: row["val_loss"])["epoch"]
    for path in (tmp_path / "checkpoints" / str(best) / "params").glob("d/*"):
        flip(path)
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(VdError, match="damaged"),
    ):
        checkpoints.restore_best(params)


def test_a_checkpoint_within_an_epoch_makes_way_for_that_of_the_whole(tmp_path):
    half = checkpoint(2, sums=EpochSums(3, 0.25, 0.5, 0.75))
    write(tmp_path, [1, 2])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(half)
    assert half.epoch == 3
    assert same(restored(tmp_path), half)
    write(tmp_path, [3])
    assert same(restored(tmp_path), checkpoint(3))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB and few files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m,nr_inodes=80", "tmpfs", folder]
    done = subprocess.run(["mount", *options], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("scarce", ["bytes", "files"])
def test_a_disk_that_fills_up_during_a_write_keeps_the_checkpoint_before(
    small_disk, scarce, capfd
):
    write(small_disk, [1])
    ballast = small_disk / "ballast"
    if scarce == "bytes":
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(free - 28_000))  # the arrays fit, the rest does not
    else:
        ballast.mkdir()
        with contextlib.suppress(OSError):
            for number in range(80):
                (ballast / str(number)).touch()
        for path in list(ballast.iterdir())[:6]:
            path.unlink()
    with pytest.raises(
        VdError, match=r"checkpoints cannot be written .* free some space"
    ):
        write(small_disk, [2])
    assert "Traceback" not in capfd.readouterr().err
    shutil.rmtree(ballast) if ballast.is_dir() else ballast.unlink()
    assert same(restored(small_disk), checkpoint(1))
    write(small_disk, [2])  # the same command again goes on
    assert same(restored(small_disk), checkpoint(2))


@pytest.mark.parametrize("change", [("0.5", "0.6"), ('"epoch": 3', '"epoch": 1')])
def test_changed_early_stopping_is_found(whole, tmp_path, capsys, change):
    shutil.copytree(whole, tmp_path / "copy")
    info = tmp_path / "copy" / "checkpoints" / "3" / "info" / "metadata"
    before = info.read_text().replace("3.5", "0.5")  # JSON that reads, of other values
    info.write_text(before.replace(*change))
    assert same(restored(tmp_path / "copy"), checkpoint(2))
    assert "the checksum of its info differs" in capsys.readouterr().err
