"""Outcomes: the rule by hand, and an outcome whatever the damage."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broken import cut, flipped, noisy_frames, render, zeroed
from tests.decoding import decode_all
from vd.data.outcome import (
    Counts,
    Outcome,
    Reason,
    outcome_from_row,
    outcome_of,
    outcome_row,
)


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
    packets = good + faults
    reached = packets / 25 if good else 0.0
    counts = Counts(good, good // 3, packets, faults, lost=faults, reached=reached)
    result = outcome_of(header, counts)
    assert (result.outcome, result.reason, result.frames) == (*expected, good)


def test_two_frames_may_be_missing_in_a_short_video():
    header = Outcome("quarantined", "", 10, fps=5.0, duration=2.0)
    assert outcome_of(header, Counts(8, 7, 8, reached=1.6)).outcome == "used"
    assert outcome_of(header, Counts(7, 6, 7, reached=1.4)).outcome == "partial"
    repeats = Counts(6, 5, 10, reached=2.0)  # packets that give no frame
    assert outcome_of(header, repeats).outcome == "used"
    assert outcome_of(header, Counts(8, 0, 8, reached=1.6)).reason == "too-short"


def test_a_row_gives_its_outcome_back():
    gaps = ((1.5, 30.0), (40.0, 0.75))
    result = Outcome(
        "used", "", 50, 64, 48, 25.0, 2.0, "h264", 9.5, 32.75, gaps, "stamps"
    )
    row = outcome_row(result)
    assert row["gaps"] == "[[1.5, 30.0], [40.0, 0.75]]"
    text = {name: str(value) for name, value in row.items()}
    assert outcome_from_row(row) == outcome_from_row(text) == result
    with pytest.raises(ValueError, match="float"):
        outcome_from_row(row | {"fps": "?"})


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
)
def test_whatever_the_damage_there_is_an_outcome(
    good_files, tmp_path_factory, name, damages
):
    content = good_files[name]
    for damage in damages:
        content = damage(content)
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    images, result = decode_all(path)
    assert result.outcome in ("used", "partial", "quarantined")
    assert result.reason in get_args(Reason)
    assert (result.outcome == "used") == (result.reason == "")
    assert len(images) > 0 or result.outcome == "quarantined"
