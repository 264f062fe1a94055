"""Checkpoints that are torn, damaged or have no room."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.fabricated import same_leaves
from vd.training.checkpoints import Checkpoint, Checkpoints
from vd.training.early_stopping import EarlyStopping
from vd.training.step import TrainState
from vd.training.sums import EpochSums

EPOCHS = 3


def checkpoint(epoch, size=300, sums=None):
    """A small checkpoint whose every number tells its epoch."""
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
        said = capsys.readouterr().err
        if same(at, checkpoint(3)):  # a file that holds nothing of the state
            continue
        assert same(at, checkpoint(2)), name
        assert "damaged" in said or "not whole" in said, name
        fell_back += 1
        with Checkpoints(folder) as checkpoints:  # and the epoch can be written again
            checkpoints.save(checkpoint(3))
        assert same(restored(folder), checkpoint(3)), name
    assert fell_back >= 5
