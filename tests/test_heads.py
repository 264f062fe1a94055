"""The study of heads: its folds, its lines, its start at the linear path, its table."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from tests.fabricated import make_set, make_videos
from vd.errors import VdError
from vd.metrics.calibration import fit
from vd.models.head import apply

ROOT = Path(__file__).parents[1]
CLIPS, GROUPS = 48, 24


@pytest.fixture(scope="module", autouse=True)
def _study():
    """Put the study's modules, which are no package, where the tests import them."""
    sys.path.insert(0, str(ROOT / "experiments"))
    yield
    sys.path.remove(str(ROOT / "experiments"))


@pytest.fixture(scope="module")
def videos():
    """Clips in groups of two of one class."""
    return [
        replace(video, group=f"g{i // 4 * 2 + i % 2}")
        for i, video in enumerate(make_videos(CLIPS))
    ]


@pytest.fixture(scope="module")
def data(videos, tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("cache"), videos, signal=0.5)


@pytest.fixture
def quick(monkeypatch):
    """The study with two probes and two short trainings."""
    import heads

    short = heads.Setting(linear=True, clip_frames=8, epochs=2)
    settings = {
        "probe C 0.01": heads.Setting(C=0.01),
        "probe C 1": heads.Setting(C=1.0),
        "linear": short.changed(recurrent=False),
    }
    monkeypatch.setattr(heads, "SETTINGS", settings)
    return heads


def run(study, path, videos, data, names=None, seeds=(0,)):
    study.start(path, "set", videos, data)
    names = names or tuple(study.SETTINGS)
    study.run_inner(path, "set", videos, data, names, range(5), seeds)


def test_inner_folds_know_nothing_of_the_outer_fold_and_cut_no_group(videos):
    import heads

    outer = {part.outer: part for part in heads.outer_parts(videos)}
    parts = list(heads.inner_parts(videos))
    assert [(p.outer, p.inner) for p in parts] == [
        (o, i) for o in range(5) for i in range(3)
    ]
    for part in parts:
        groups = [{v.group for v in clips} for clips in (part.train, part.test)]
        assert not groups[0] & groups[1]
        kept_aside = {v.group for v in outer[part.outer].test}
        assert not kept_aside & (groups[0] | groups[1])
    for number, part in outer.items():
        tested = [v.id for p in parts if p.outer == number for v in p.test]
        assert sorted(tested) == sorted(v.id for v in part.train)


def test_a_rerun_skips_what_is_there_and_a_cut_line_is_run_again(
    quick, videos, data, tmp_path, monkeypatch
):
    import heads_training

    path = tmp_path / "lines.jsonl"
    run(quick, path, videos, data, ["probe C 0.01"])
    whole = path.read_bytes()
    assert whole.count(b"\n") == 1 + 15
    trained = []
    train = heads_training.test_logits
    noting = lambda *a: trained.append(a) or train(*a)
    monkeypatch.setattr(heads_training, "test_logits", noting)
    run(quick, path, videos, data, ["probe C 0.01"])
    assert (path.read_bytes(), trained) == (whole, [])
    path.write_bytes(whole[:-40])  # as a kill leaves it
    run(quick, path, videos, data, ["probe C 0.01"])
    assert len(trained) == 1
    lines = [json.loads(text) for text in path.read_bytes().splitlines()]
    before = [json.loads(text) for text in whole.splitlines()]
    for line in (*lines, *before):
        line.pop("cpu_seconds", None)
    assert lines == before


def test_a_correction_begins_at_exactly_the_linear_paths_logits(data):
    import heads_training as training

    both = training.Setting(
        linear=True, correction=True, input_dropout=0.5, clip_frames=8
    )
    states, heads = [], []
    for setting in (
        both,
        both.changed(recurrent=False),
        both.changed(correction=False),
    ):
        config = training._config(setting, len(data), seed=3)
        plugins = training._plugins(setting, data.dim)
        state = training.first_state(config, plugins, data)
        path = state.params["linear"]
        # a linear path that has learnt something
        path = {**path, "kernel": jnp.linspace(-1, 1, path["kernel"].size)[:, None]}
        states.append({**state.params, "linear": path})
        heads.append(plugins.make_head(config.model))
    features = np.zeros((len(data), 8, data.dim), np.float16)
    mask = np.zeros((len(data), 8), np.float32)
    for i, (clip,) in enumerate(data.in_order()):
        features[i, : len(clip)], mask[i, : len(clip)] = clip, 1
    sums, alone, not_zero = (
        np.asarray(apply(head, params, features, mask))
        for head, params in zip(heads, states, strict=True)
    )
    assert np.array_equal(sums, alone)
    assert np.ptp(alone) > 1
    assert not np.array_equal(not_zero, alone)
    # the linear path is that of the probe's standardised mean and deviation
    clips = [clip.astype(np.float64) for (clip,) in data.in_order()]
    pooled = np.array([np.concatenate([c.mean(0), c.std(0)]) for c in clips])
    expected = StandardScaler().fit_transform(pooled) @ np.linspace(-1, 1, 2 * data.dim)
    np.testing.assert_allclose(alone, expected, atol=1e-3)


@pytest.mark.slow
def test_the_table_is_what_the_trainings_give(quick, videos, data, tmp_path):
    import heads_table
    from heads_lines import read_results

    path = tmp_path / "lines.jsonl"
    run(quick, path, videos, data)
    results = read_results(path, "set")
    aucs, losses = {}, {}
    for C in (0.01, 1.0):
        for outer in quick.outer_parts(videos):
            logits, labels = [], []
            for part in quick.inner_parts(videos):
                if part.outer != outer.outer:
                    continue
                x, y = zip(*(pooled(data, clips) for clips in part[2:]), strict=True)
                scaler = StandardScaler().fit(x[0])
                probe = LogisticRegression(C=C, max_iter=1000)
                probe.fit(scaler.transform(x[0]), y[0])
                logits.append(probe.decision_function(scaler.transform(x[1])))
                labels.append(y[1])
            logits, labels = np.concatenate(logits), np.concatenate(labels)
            probability = fit(logits, labels.astype(int)).probability(logits)
            aucs[C, outer.outer] = roc_auc_score(labels, logits)
            losses[C, outer.outer] = log_loss(labels, probability)
    rows = {name: parts for name, parts, _ in heads_table.rows(results)}
    for C in (0.01, 1.0):
        for outer, part in enumerate(rows[f"probe C {C:g}"]):
            assert part.auc == pytest.approx(aucs[C, outer], abs=1e-3)
            assert part.log_loss == pytest.approx(losses[C, outer], abs=1e-3)
    chosen = [min((0.01, 1.0), key=lambda C: losses[C, o]) for o in range(5)]
    assert rows[heads_table.PROBE] == [
        rows[f"probe C {C:g}"][outer] for outer, C in enumerate(chosen)
    ]
    text = heads_table.table(results)
    mean = np.mean([aucs[0.01, outer] for outer in range(5)])
    assert f"| probe C 0.01 | {mean:.3f} ± " in text
    assert "| linear | " in text


def pooled(data, videos):
    """Mean and deviation of each clip, and the labels."""
    part = data.part(videos)
    clips = [clip.astype(np.float32) for (clip,) in part.in_order()]
    return (
        np.array([np.concatenate([c.mean(0), c.std(0)]) for c in clips]),
        part.labels_N,
    )


@pytest.mark.slow
def test_outer_folds_are_tested_only_with_a_fixed_setting(
    quick, videos, data, tmp_path, monkeypatch
):
    import heads_table
    from heads_lines import read_results

    path = tmp_path / "lines.jsonl"
    run(quick, path, videos, data)
    assert all(inner is not None for _, _, inner, _ in read_results(path, "set").lines)
    monkeypatch.setattr(quick, "FIXED", None)
    with pytest.raises(VdError, match="name it in FIXED"):
        quick.run_outer(path, "set", videos, data, (0,))
    monkeypatch.setattr(quick, "FIXED", "linear")
    quick.run_outer(path, "set", videos, data, (0,))
    results = read_results(path, "set")
    outer = [line for line in results.lines.values() if line["inner"] is None]
    assert len(outer) == 2 * 5
    for name in {line["setting"] for line in outer} - {"linear"}:
        assert results.lines[name, 0, 0, 0]["settings"]["C"] is not None
    tested = sorted(c for line in outer for c in line["clips"])
    assert tested == sorted(2 * list(results.clips))
    # each fold is divided by the temperature of its own inner logits
    line = results.lines["linear", 2, None, 0]
    inner_lines = heads_table.inner_lines(results, "linear", 2, 0)
    inner = heads_table.scored(results, inner_lines)
    part = heads_table.outer_part(results, "linear", 2, 0)
    scale = fit(inner.logits_N, inner.labels_N).temperature
    np.testing.assert_allclose(part.logits_N, np.array(line["logits"]) / scale)


def test_a_subsample_has_whole_groups_of_both_classes_and_lies_in_a_larger_one(videos):
    import heads_few

    samples = [heads_few.subsample(videos, clips) for clips in (8, 20, 1000)]
    assert list(map(len, samples)) == [8, 20, CLIPS]
    for sample, larger in zip(samples, [*samples[1:], videos], strict=True):
        inside = {video.id for video in sample}
        assert inside <= {video.id for video in larger}
        groups = {video.group for video in sample}
        assert inside == {video.id for video in videos if video.group in groups}
        assert sum(video.label for video in sample) == len(sample) / 2


def test_a_line_of_before_the_change_reads_mean_and_deviation(
    quick, videos, data, tmp_path
):
    path = tmp_path / "lines.jsonl"
    run(quick, path, videos, data, ["probe C 0.01"])
    lines = [json.loads(text) for text in path.read_bytes().splitlines()]
    for line in lines[1:]:
        del line["settings"]["change"]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    quick.start(path, "set", videos, data)
    quick.SETTINGS["probe C 0.01"] = quick.Setting(C=0.01, change=True)
    with pytest.raises(VdError, match="with values that are not those of this script"):
        quick.start(path, "set", videos, data)
