import socket
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.rendering.clips import (
    CLASSES,
    FRAME_RATES,
    SIZES,
    render_dataset,
    render_episode,
)
from vd.errors import VdError


class Clip(NamedTuple):
    frames_FxHxW: np.ndarray  # luma
    frame_rate: int
    frames_promised: int


def read(path: Path) -> Clip:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        frames = [f.to_ndarray()[: f.height] for f in container.decode(stream)]
        return Clip(np.array(frames), int(stream.average_rate), stream.frames)


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in files(root)}


def motion_F(clip: Clip) -> np.ndarray:
    """Mean absolute difference from each frame to the one a tenth of a second later."""
    apart = round(0.1 * clip.frame_rate)
    frames = clip.frames_FxHxW.astype(np.int16)
    return np.abs(frames[apart:] - frames[:-apart]).mean(axis=(1, 2))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "clips"
    return render_dataset(folder, clips={"train": 100, "test": 4}, seed=0)


@pytest.fixture(scope="module")
def clips(root: Path) -> list[Clip]:
    """The training clips, non-violent ones first."""
    folders = [root / "train" / name for name in ("nonviolent", "violent")]
    return [read(path) for folder in folders for path in sorted(folder.iterdir())]


LABELS = np.repeat([0, 1], 50)


@pytest.mark.slow
def test_clips_are_as_promised_and_both_classes_have_the_same_formats(
    root: Path, clips: list[Clip]
) -> None:
    expected = [
        f"{split}/{name}/clip_{n:04d}.mp4"
        for split, per_class in (("train", 50), ("test", 2))
        for name in CLASSES
        for n in range(1, per_class + 1)
    ]
    assert files(root) == sorted([".rendered.json", *expected])
    for clip in clips:
        assert len(clip.frames_FxHxW) == clip.frames_promised
        assert 1.6 - 0.04 <= clip.frames_promised / clip.frame_rate <= 2.4 + 0.04
    formats = [(clip.frames_FxHxW.shape, clip.frame_rate) for clip in clips]
    assert formats[:50] == formats[50:]
    assert {shape[:0:-1] for shape, _ in formats} == set(SIZES)
    assert {rate for _, rate in formats} == set(FRAME_RATES)


@pytest.mark.slow
def test_neither_brightness_nor_file_size_tells_the_class(
    root: Path, clips: list[Clip]
) -> None:
    paths = sorted((root / "train").rglob("*.mp4"))  # in the order of `clips`
    rng = np.random.default_rng(0)
    for values in (
        np.array([clip.frames_FxHxW.mean() for clip in clips]),
        np.array([clip.frames_FxHxW.std() for clip in clips]),
        np.array([path.stat().st_size for path in paths]),
    ):
        gap = abs(values[50:].mean() - values[:50].mean())
        shuffled = [rng.permutation(LABELS) for _ in range(2000)]
        gaps = [abs(values[s == 1].mean() - values[s == 0].mean()) for s in shuffled]
        assert np.mean(np.array(gaps) >= gap) > 0.05  # p of a permutation test


@pytest.mark.slow
def test_a_single_frame_does_not_tell_the_class_but_motion_does(
    clips: list[Clip],
) -> None:
    middles = [clip.frames_FxHxW[len(clip.frames_FxHxW) // 2] for clip in clips]
    small = [cv2.resize(m, (16, 12), interpolation=cv2.INTER_AREA) for m in middles]
    pixels_NxP = np.array(small).reshape(len(small), -1) / 255
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    scores = cross_val_predict(
        model, pixels_NxP, LABELS, cv=5, method="decision_function"
    )
    # Under shuffled labels this AUC has mean 0.49 and deviation 0.08.
    assert 0.35 < roc_auc_score(LABELS, scores) < 0.65
    assert roc_auc_score(LABELS, [motion_F(clip).mean() for clip in clips]) > 0.97


def test_a_killed_rendering_continues_and_a_finished_one_is_kept(
    tmp_path: Path,
) -> None:
    root = render_dataset(tmp_path / "clips", clips={"val": 4}, seed=1)
    whole = contents(root)
    kept, lost = (root / "val/violent" / f"clip_000{n}.mp4" for n in (1, 2))
    written = kept.stat().st_mtime_ns
    dead = f"{socket.gethostname()}-{2**30}"  # more than any process id
    lost.rename(lost.with_name(f"{lost.name}.tmp-{dead}"))
    assert render_dataset(root, clips={"val": 4}, seed=1) == root
    assert contents(root) == whole
    assert kept.stat().st_mtime_ns == written


def test_clips_follow_from_the_seed(tmp_path: Path) -> None:
    def middle(folder: str, seed: int) -> list[np.ndarray]:
        root = render_dataset(tmp_path / folder, clips={"a": 2, "b": 2}, seed=seed)
        return [read(path).frames_FxHxW[20] for path in sorted(root.rglob("*.mp4"))]

    first, again, other = middle("1", 3), middle("2", 3), middle("3", 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    distinct = {frame.tobytes() for frame in first + other}
    assert len(distinct) == 8  # every split, class and seed draws its own


@pytest.mark.parametrize(
    ("clips", "seed", "words"),
    [
        ({"train": 4, "val": 3}, 0, "3 clips .* val"),
        ({"train": 0}, 0, "0 clips .* train"),
        ({"train": 2}, -1, "seed -1"),
    ],
)
def test_bad_requests_are_one_sentence_and_write_nothing(
    tmp_path: Path, clips: dict[str, int], seed: int, words: str
) -> None:
    with pytest.raises(VdError, match=words):
        render_dataset(tmp_path / "clips", clips=clips, seed=seed)
    assert files(tmp_path) == []


def test_other_peoples_folders_and_other_renderings_are_left_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.mp4").touch()
    (tmp_path / "file").touch()
    render_dataset(tmp_path / "clips", clips={"train": 2}, seed=0)
    before = contents(tmp_path)
    for name, words in (
        ("mine", "mine exists and is no folder of rendered clips"),
        ("file", "file exists and is no folder of rendered clips"),
        ("clips", "clips holds clips rendered with another seed"),
    ):
        with pytest.raises(VdError, match=words):
            render_dataset(tmp_path / name, clips={"train": 2}, seed=1)
    assert contents(tmp_path) == before


def test_an_episode_moves_more_inside_its_violent_spans(tmp_path: Path) -> None:
    path = tmp_path / "new" / "episode.mp4"
    # More than four seconds: the bursts go on to the end of a long stretch, too.
    spans = render_episode(path, calm_seconds=1.6, violent_seconds=5.6, seed=0)
    np.testing.assert_allclose(spans, [(1.6, 7.2), (8.8, 14.4)])
    clip = read(path)
    assert clip.frames_FxHxW.shape == (400, 240, 320)
    assert clip.frame_rate == 25
    motion = motion_F(clip)
    stretches = np.split(motion, [40, 180, 220, 360])  # frames at the ends above
    calm = [stretch[:-2].mean() for stretch in stretches[::2]]  # before the change
    for violent in stretches[1::2]:
        for part in np.array_split(violent[2:-2], 4):
            assert part.mean() > 1.5 * max(calm)


def test_an_episode_is_kept_and_follows_from_the_seed(tmp_path: Path) -> None:
    def render(name: str, seed: int) -> tuple[tuple[float, float], ...]:
        path = tmp_path / name
        return render_episode(path, calm_seconds=0.4, violent_seconds=0.2, seed=seed)

    spans = render("first.mp4", 0)
    written = (tmp_path / "first.mp4").stat().st_mtime_ns
    assert render("first.mp4", 0) == spans
    assert (tmp_path / "first.mp4").stat().st_mtime_ns == written
    render("again.mp4", 0)
    render("other.mp4", 1)
    first, again, other = (
        (tmp_path / f"{name}.mp4").read_bytes() for name in ("first", "again", "other")
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("violent_seconds", "seed", "words"),
    [
        (0.0, 0, "stretches of 1.0 and 0.0 s"),
        (1.0, -1, "seed -1"),
        (1.0, 1, "holiday.mp4 is not the video to be rendered there"),
    ],
)
def test_bad_episodes_are_one_sentence_and_write_nothing(
    tmp_path: Path, violent_seconds: float, seed: int, words: str
) -> None:
    path = tmp_path / "holiday.mp4"
    path.write_text("mine")
    with pytest.raises(VdError, match=words):
        render_episode(
            path, calm_seconds=1.0, violent_seconds=violent_seconds, seed=seed
        )
    assert contents(tmp_path) == {"holiday.mp4": b"mine"}
