"""The study of accuracy against cost: its points, its lines, its front."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.test_heads import _study, data, videos  # noqa: F401  # fixtures
from vd.errors import VdError


@pytest.fixture
def started(tmp_path, videos):  # noqa: F811
    """A file of lines that has the data set's."""
    from heads import start_lines

    start_lines(tmp_path / "front.jsonl", "set", videos, "contents")
    return tmp_path / "front.jsonl"


def facts(**changes):
    return {
        "dataset": "set", "setting": "a point", "settings": {}, "seed": 0,
        "features": "f", **changes,
    }  # fmt: skip


def test_points_are_what_presets_compute():
    from front_points import POINTS

    assert len({point.name for point in POINTS}) == len(POINTS)
    named = {point.name: point.preset for point in POINTS if point.preset}
    assert sorted(named.values()) == ["best", "default", "fast"]
    assert named["rgb + motion + square, 224 px"] == "default"
    assert named["rgb + motion + square, 224 px, two views"] == "best"
    for point in POINTS:
        backbone = point.backbone
        assert (backbone.size, backbone.streams) == (point.size, point.streams)
        assert len(backbone.views) == point.views
        assert backbone.name.endswith("-int8") == point.int8


def test_a_point_is_scored_on_inner_folds_and_once(started, videos, data):  # noqa: F811
    from front import run_point, statistics
    from heads import inner_parts, name_of
    from heads_lines import read_results

    every_VxNx2xSxD = statistics(data, change=False)
    streams, dim = every_VxNx2xSxD.shape[-2:]
    clip = np.asarray(data.read(3, 1), np.float32).reshape(-1, streams, dim)
    np.testing.assert_allclose(every_VxNx2xSxD[1, 3, 1], clip.std(0), rtol=1e-5)
    x_VxNxP = every_VxNx2xSxD[:, :, :, 1:].reshape(2, len(videos), -1)
    run_point(started, facts(), videos, x_VxNxP)
    lines = read_results(started, "set").lines
    assert len(lines) == 5 * 3
    part = list(inner_parts(videos))[4]  # by hand: outer fold 1, inner fold 1
    places = [
        [videos.index(video) for video in clips] for clips in (part.train, part.test)
    ]
    labels = np.tile([video.label for video in part.train], 2)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.005, max_iter=1000))
    probe.fit(np.concatenate(x_VxNxP[:, places[0]]), labels)
    logits = np.mean([probe.decision_function(x[places[1]]) for x in x_VxNxP], axis=0)
    line = lines["a point", part.outer, part.inner, 0]
    assert line["clips"] == [name_of(video) for video in part.test]
    np.testing.assert_allclose(line["logits"], logits, atol=1e-4)
    before = started.read_bytes()
    run_point(started, facts(), videos, x_VxNxP)
    assert started.read_bytes() == before
    with pytest.raises(VdError, match="has lines of a point from other features"):
        run_point(started, facts(features="g"), videos, x_VxNxP)


def test_times_stand_beside_the_results_and_the_last_count(started):
    from front_table import read_rates
    from heads_lines import read_results

    assert read_rates(started, "set") == {}
    for slower in (1, 2):
        stages = {
            "extraction": [9.0, 2.0 * slower, 1.0],
            "decoding": [1.0, 0.5, 0.25],
            "backbone": [1.0, 1.0, 1.0],
        }
        line = {"dataset": "set", "seconds": {"a point": stages}, "timed_clips": 6}
        with started.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
    assert read_rates(started, "set") == {"a point": (6 / 4, 6 / 1.5)}
    assert read_results(started, "set").lines == {}


def test_the_front_has_the_points_that_none_surpasses():
    from front_table import front

    speed = np.array([1, 4, 2, 2, 8, 8.0])
    auc = np.array([0.9, 0.8, 0.85, 0.7, 0.6, 0.5])
    assert front(speed, auc) == [4, 1, 2, 0]


def test_the_committed_lines_give_the_table(capsys):
    from front import main

    assert main(Path("scfd/manifest.csv"), table=True) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    begins = [
        "| rgb + motion + square, 224 px, deviation | 50 | 0.893 ± 0.025 |",
        "| rgb + motion + square, 224 px (`default`) | 50 | 0.906 ± 0.020 |",
        "| motion + square, 160 px, 8 bits (`fast`) | 33 | 0.896 ± 0.020 |",
    ]
    for text in begins:
        assert sum(row.startswith(text) for row in rows) == 1
