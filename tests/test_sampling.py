"""The geometry of a clip: windows, jitter, and draws that depend on nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vd.features.sampling import (
    ClipDraws,
    draw_clips,
    middle_clips,
    scoring_windows,
    training_frames,
)


def draws_of(start, stretch, shift):
    """The draws of one clip, not drawn."""
    return ClipDraws(*(np.array([x]) for x in (0, start, float(stretch), float(shift))))


def frames_of(stored, clip_frames, jitter, draws):
    """The frames of one clip, without padding."""
    frames_1xT, mask_1xT = training_frames(
        np.array([stored]), clip_frames, jitter, draws
    )
    length = int(mask_1xT.sum())
    assert mask_1xT[0, :length].all()
    assert not frames_1xT[0, length:].any()
    return frames_1xT[0, :length]


def test_no_jitter_takes_a_window_as_it_is():
    made = frames_of(10, 4, 0.0, draws_of(6, 1, 1))
    np.testing.assert_array_equal(made, [6, 7, 8, 9])
    made = frames_of(3, 4, 0.1, draws_of(0, 0, 0))
    np.testing.assert_array_equal(made, [0, 1, 2])


def test_stretch_and_shift_by_hand():
    # L = 10, middle 4.5: 4.5 + (k − 4.5) · 1.1 + 1, to the nearest, at most 9
    expected = [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    np.testing.assert_array_equal(frames_of(10, 32, 0.1, draws_of(0, 1, 1)), expected)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
    st.integers(1, 40),
    st.floats(0, 0.5),
    st.integers(0, 99),
    st.integers(1, 2),
)
def test_clips_of_a_batch_are_those_of_a_generator_each(
    stored, clip_frames, jitter, step, views
):
    """Against one clip at a time, with a generator of its own."""
    stored_B, index_B = np.array(stored), np.arange(7, 7 + len(stored))
    draws = draw_clips(3, step, index_B, stored_B, clip_frames, views)
    frames_BxT, mask_BxT = training_frames(stored_B, clip_frames, jitter, draws)
    for row, (count, index) in enumerate(zip(stored, index_B, strict=True)):
        bits = np.random.Philox(key=[3, 0], counter=[0, 0, step, int(index)])
        generator = np.random.Generator(bits)
        length = min(count, clip_frames)
        assert draws.view_B[row] == generator.integers(views)
        start = generator.integers(count - length + 1)
        factor = 1 + jitter * generator.uniform(-1, 1)
        shift = jitter * length * generator.uniform(-1, 1)
        middle = (length - 1) / 2
        expected = [
            start + middle + (k - middle) * factor + shift for k in range(length)
        ]
        expected = [min(max(round(p), 0), count - 1) for p in expected]
        assert frames_BxT[row, :length].tolist() == expected
        assert mask_BxT[row].tolist() == [1] * length + [0] * (clip_frames - length)


@given(st.integers(1, 300), st.integers(1, 40))
def test_without_augmentation_a_clip_is_a_scoring_window(stored, clip_frames):
    draws = middle_clips(np.array([stored]), clip_frames)
    windows = [w.tolist() for w in scoring_windows(stored, clip_frames)]
    made = frames_of(stored, clip_frames, 0.1, draws).tolist()
    assert made == windows[len(windows) // 2]


@pytest.mark.parametrize(
    ("stored", "starts", "length"),
    [
        (3, [0], 3),
        (4, [0], 4),
        (5, [0, 1], 4),
        (8, [0, 4], 4),
        (11, [0, 4, 7], 4),
    ],
)
def test_scoring_windows_are_blocks_and_one_that_ends_at_the_end(
    stored, starts, length
):
    windows = [window.tolist() for window in scoring_windows(stored, 4)]
    assert windows == [list(range(start, start + length)) for start in starts]


@given(st.integers(1, 400), st.integers(1, 40))
def test_scoring_windows_cover_every_frame(stored, clip_frames):
    windows = list(scoring_windows(stored, clip_frames))
    assert set(np.concatenate(windows)) == set(range(stored))
    assert {len(window) for window in windows} == {min(stored, clip_frames)}
    assert len(windows) == -(-stored // clip_frames)


def test_draws_are_a_function_of_seed_step_and_index():
    def draw(seed, step, *index):
        stored = np.full(len(index), 900)
        draws = draw_clips(seed, step, np.array(index), stored, 8, views=2)
        return np.transpose(draws).tolist()

    assert draw(1, 2, 3, 4) == draw(1, 2, 3) + draw(1, 2, 4)
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]
    assert len({str(draw(*key)) for key in keys}) == 4
