"""Outcomes: the rule by hand, and an outcome whatever the damage."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broken import cut, flipped, noisy_frames, render, zeroed
from tests.decoding import decode
from vd.data.outcome import Outcome, Reason, Tally, outcome_of


@pytest.mark.parametrize(
    ("good", "faults", "expected"),
    [
        (100, 0, ("used", "")),
        (95, 0, ("used", "")),  # a twentieth may be missing
        (94, 0, ("partial", "truncated")),
        (99, 1, ("partial", "corrupt-frames")),
        (50, 0, ("partial", "truncated")),  # half must come
        (49, 0, ("quarantined", "truncated")),
        (0, 100, ("quarantined", "truncated")),
    ],
)
@pytest.mark.parametrize("frames", [100, 0])  # by the header; 0: by time alone
def test_the_rule_of_outcomes(good, faults, expected, frames):
    header = Outcome("quarantined", "", frames, fps=25.0, duration=4.0)
    last = (good + faults - 1) / 25 if good else 0.0
    result = outcome_of([Tally(header, good, faults, last, kept=good // 3)])
    assert (result.outcome, result.reason, result.frames) == (*expected, good)


def test_two_frames_may_lack_in_a_short_video_and_stretches_add_up():
    header = Outcome("quarantined", "", 10, fps=5.0, duration=2.0)
    parts = [Tally(header, 5, 0, 0.8, 4), Tally(header, 3, 0, 1.4, 3)]
    assert outcome_of(parts).outcome == "used"
    assert outcome_of(parts[:1]).outcome == "partial"
    vanished = Tally(Outcome("quarantined", "missing"))
    assert outcome_of([*parts, vanished]).reason == "missing"


@pytest.fixture(scope="module")
def good_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    names = ("a.mp4", "a.avi", "a.mkv", "a.ts")
    return {n: render(folder / n, noisy_frames(50)).read_bytes() for n in names}


shares = st.floats(0, 1)
damages = st.one_of(
    st.builds(lambda share: lambda c: cut(c, share), shares),
    st.builds(lambda a, b: lambda c: zeroed(c, min(a, b), max(a, b)), shares, shares),
    st.builds(
        lambda seed, bits: lambda c: flipped(c, seed, bits) if c else c,
        st.integers(0, 2**32),
        st.sampled_from([1, 8, 64]),
    ),
    st.builds(
        lambda share, junk: lambda c: cut(c, share) + junk + c[len(cut(c, share)) :],
        shares,
        st.binary(max_size=64),
    ),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["a.mp4", "a.avi", "a.mkv", "a.ts"]),
    damages=st.lists(damages, min_size=1, max_size=3),
    seconds=st.sampled_from([0.5, 60.0]),
)
def test_whatever_the_damage_there_is_an_outcome(
    good_files, tmp_path_factory, name, damages, seconds
):
    content = good_files[name]
    for damage in damages:
        content = damage(content)
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    images, result = decode(path, seconds)
    assert result.outcome in ("used", "partial", "quarantined")
    assert result.reason in get_args(Reason)
    assert (result.outcome == "used") == (result.reason == "")
    assert len(images) > 0 or result.outcome == "quarantined"
