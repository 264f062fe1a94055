"""Streams: motion images, the square that holds most of the motion, and one's own."""

import numpy as np
import pytest

from tests.broken import render_lossless
from tests.decoding import decode_all
from vd.data.decode import FrameSettings
from vd.data.streams import STREAMS, Stream, difference, moving_square, stream_settings

ALL = ("rgb", "motion", "square")
FINE, LEAST = 448, 112  # pixels


def still():
    return np.full((FINE, FINE, 3), 127, np.uint8)


def light():
    """A light that moves in one corner of a dark frame."""
    images = [np.full((96, 128, 3), 40, np.uint8) for _ in range(50)]
    for index, image in enumerate(images):
        image[70:80, 90 + index % 8 : 100 + index % 8] = 250
    return images


def test_the_difference_is_exact_for_every_pair_of_values():
    earlier, later = np.indices((256, 256), np.uint8)[..., None].repeat(3, -1)
    plain = np.clip(127 + later.astype(int) - earlier, 0, 255)
    np.testing.assert_array_equal(difference(earlier, later), plain)


@pytest.mark.parametrize("seed", range(8))
def test_the_square_is_that_of_a_plain_implementation(seed):
    rng = np.random.default_rng(seed)
    moved = rng.random((FINE, FINE, 1)) < 0.02 * rng.random()
    motion = np.where(moved, rng.integers(0, 256, (FINE, FINE, 3)), 127)
    top, left = rng.integers(0, FINE - 48, 2)
    motion[top : top + 48, left : left + 48] = rng.integers(0, 256)
    energy = np.abs(motion - 127).sum(2)
    middles, lengths = [], []
    for axis in (1, 0):
        share = np.cumsum(energy.sum(axis)) / energy.sum()
        low, high = np.argmax(share >= 0.15), np.argmax(share >= 0.85)
        middles.append((low + high) / 2)
        lengths.append(high - low)
    side = min(max(*lengths, LEAST), FINE)
    rows, columns = moving_square(motion.astype(np.uint8))
    for found, middle in ((rows, middles[0]), (columns, middles[1])):
        assert found.stop - found.start == side
        assert found.start == int(np.clip(middle - side / 2, 0, FINE - side))


@pytest.mark.parametrize("corner", [0, FINE - 4])
def test_a_small_motion_has_the_least_square_within_the_frame(corner):
    motion = still()
    motion[corner : corner + 4, corner : corner + 4] = 0
    rows, columns = moving_square(motion)
    assert rows == columns
    assert rows.stop - rows.start == LEAST
    assert rows.start in (0, FINE - LEAST)


def test_no_motion_gives_a_square_all_the_same():
    rows, columns = moving_square(still())
    side = rows.stop - rows.start
    assert rows == columns
    assert 0.6 * FINE < side < 0.8 * FINE  # motion evenly spread


def test_the_square_is_a_stream_beside_the_others(tmp_path):
    """A light that moves in one corner fills its square; other streams stay as they are."""
    path = render_lossless(tmp_path / "a.mkv", light())
    two = FrameSettings(height=64, width=64)
    three = FrameSettings(height=64, width=64, streams=ALL)
    plain, square = (decode_all(path, settings=each)[0] for each in (two, three))
    np.testing.assert_array_equal(square[:, :2], plain)
    moved = np.abs(square.astype(int) - 127).max((2, 3, 4))
    assert (moved[:, 2] >= moved[:, 1]).all()
    share = (np.abs(square.astype(int) - 127).max(4) > 20).mean((2, 3))
    assert (share[:, 2] > 4 * share[:, 1]).all()


def test_a_stream_is_one_entry(tmp_path, monkeypatch):
    """It sees the frame and the later one at its own side, and is resized to the input."""
    seen = []

    def corner(earlier, later):
        seen.append((earlier.shape, later.shape))
        return later[:10, :20]

    monkeypatch.setitem(STREAMS, "corner", Stream(corner, 50, {"rows": 10}))
    path = render_lossless(tmp_path / "a.mkv", light())
    settings = FrameSettings(height=24, width=32, streams=("corner", "rgb"))
    images = decode_all(path, settings=settings)[0]
    assert set(seen) == {((50, 50, 3), (50, 50, 3))}
    assert images.shape == (16, 2, 24, 32, 3)
    assert (images[:, 0] == 40).all()  # dark in the corner
    assert stream_settings(["rgb", "corner"]) == {"corner": {"rows": 10}}
