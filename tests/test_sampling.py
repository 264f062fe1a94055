"""The geometry of a clip: windows, jitter, and draws that depend on nothing else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vd.features.sampling import clip_generator, scoring_windows, training_frames


class Middle:
    """A generator whose every draw is the middle: no shift, no stretch, first window."""

    def integers(self, high):
        return 0

    def uniform(self, low, high):
        return (low + high) / 2


class Most(Middle):
    """Every draw at its upper end."""

    def integers(self, high):
        return high - 1

    def uniform(self, low, high):
        return high


def test_no_jitter_takes_a_window_as_it_is():
    np.testing.assert_array_equal(training_frames(10, 4, 0.0, Most()), [6, 7, 8, 9])
    np.testing.assert_array_equal(training_frames(3, 4, 0.1, Middle()), [0, 1, 2])


def test_stretch_and_shift_by_hand():
    # L = 10, middle 4.5: 4.5 + (k − 4.5) · 1.1 + 1, to the nearest, at most 9
    expected = [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    np.testing.assert_array_equal(training_frames(10, 32, 0.1, Most()), expected)


@given(st.integers(1, 300), st.integers(1, 40), st.floats(0, 0.5), st.integers(0, 99))
def test_training_frames_exist_and_go_forward(stored, clip_frames, jitter, index):
    frames = training_frames(stored, clip_frames, jitter, clip_generator(0, 0, index))
    assert len(frames) == min(stored, clip_frames)
    assert frames.min() >= 0
    assert frames.max() < stored
    assert np.all(np.diff(frames) >= 0)


@given(st.integers(1, 400), st.integers(1, 40))
def test_scoring_windows_cover_every_frame(stored, clip_frames):
    windows = list(scoring_windows(stored, clip_frames))
    assert set(np.concatenate(windows)) == set(range(stored))
    assert {len(window) for window in windows} == {min(stored, clip_frames)}
    assert len(windows) == -(-stored // clip_frames)


def test_draws_are_a_function_of_seed_step_and_index():
    def draw(*key):
        return clip_generator(*key).uniform(size=3).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert (
        len({tuple(draw(*key)) for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]})
        == 4
    )
