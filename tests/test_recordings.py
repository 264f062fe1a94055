"""The study over joined recordings, on rendered clips: joins, truth, figures, held-back clips."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from tests.command_line import script
from vd.files import read_csv, write_csv
from vd.predict.predictor import load

pytestmark = pytest.mark.slow

STUDY = Path(__file__).parents[1] / "experiments" / "recordings.py"


def frames_of(path):
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="yuv420p") for f in container.decode(video=0)]


def manifest(folder, split, groups):
    """A CSV of the split's clips, each in the group that its number and class give."""
    rows = [
        {
            "path": str(path),
            "label": path.parent.name,
            "group": groups(int(path.stem[-4:]), path.parent.name == "violent"),
        }
        for path in sorted(folder.glob(f"{split}/*/*.mp4"))
    ]
    path = folder.parent / f"{split}.csv"
    write_csv(path, rows, ["path", "label", "group"])
    return path


def test_recordings_have_their_truth_and_figures(clips, tmp_path):
    # two violent clips and one calm; one and three; one violent clip alone
    a, b, c = "a/b", "a_b", "c"
    sources = {True: (a, a, b, c), False: (a, b, b, b)}
    first, second = "1-a_b.mp4", "2-a_b.mp4"
    path = manifest(clips, "test", lambda n, violent: sources[violent][n - 1])
    done = script(
        STUDY, "--dataset-path", path, "--out", tmp_path / "out", "--cache-dir",
        tmp_path / "cache", "--thresholds", 0, 1,
    )  # fmt: skip
    own, every, never = map(json.loads, done.stdout.splitlines())
    truth = read_csv(tmp_path / "out" / "truth.csv")
    violent = [row["label"] == "violent" for row in truth]
    recordings = [row["recording"] for row in truth]
    assert recordings == [first] * 7 + [second] * 4
    assert violent == [False, False, True] * 2 + [False] * 3 + [True, False]
    assert every["joins_in_calm"] == sum(violent) == every["true"] == 3
    for a, b in pairwise(truth):
        if a["recording"] == b["recording"]:
            assert a["end"] == b["start"]
    rows = [row for row in truth if row["recording"] == second]
    joined, start = frames_of(tmp_path / "out" / second), 0
    for row in rows:
        expected = frames_of(row["clip"])
        if expected[0].shape == joined[0].shape:  # else resized
            for a, b in zip(expected, joined[start:], strict=False):
                np.testing.assert_array_equal(a, b)
        start += len(expected)
    assert (start, float(rows[0]["start"])) == (len(joined), 0.0)

    detector = load()
    predictions = list(
        detector.predict([tmp_path / "out" / name for name in (first, second)])
    )
    assert own["threshold"] == detector.plan.rules.threshold
    found = sum(len(p.events) for p in predictions)
    assert own["found"] + own["false_alarms"] == found
    sys.path.insert(0, str(STUDY.parent))
    from recordings import events_of

    sys.path.pop(0)
    for p in predictions:
        plan = detector.plan
        same = events_of(p.timeline, plan.rules, plan.window_seconds)
        assert [e.to_dict() for e in same] == [e.to_dict() for e in p.events]
    # one event a recording, over all of it
    assert (every["recall"], every["false_alarms"]) == (2 / 3, 0)
    assert (never["recall"], never["median_delay"]) == (0.0, None)
    assert never["false_alarms_per_hour"] == never["joins_in_calm_alarmed"] == 0


def test_clips_that_the_run_has_seen_are_refused(clips, trained, tmp_path):
    path = manifest(clips, "train", lambda n, violent: "a")
    run = trained[0] / "run"
    done = script(
        STUDY, "--dataset-path", path, "--out", tmp_path / "out", "--cache-dir",
        tmp_path / "cache", "--checkpoint-dir", run, code=2,
    )  # fmt: skip
    assert "was trained or validated on all of its clips" in done.stderr
    assert not (tmp_path / "out").exists()
