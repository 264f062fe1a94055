"""Study: events in recordings that are joined from held-back clips of one source each.

    python experiments/recordings.py --dataset-path DATA/manifest.csv --out OUT --checkpoint-dir RUN

Without --checkpoint-dir the detector that comes with vd is judged. Clips that it or its
backbone has seen, and those of their groups, are left out. Each group of the manifest that
has clips of both classes becomes one recording: calm, calm, violent, … , calm, so that there
are as many joins inside calm as at onsets, and an alarm about cuts alone gains nothing. Calm
clips come again where a group has too few. Frames are encoded once, without loss, where clips
of a group have one size. OUT keeps the recordings and `truth.csv`.

A line a threshold, the run's own first: recall of the violent clips, false alarms in an hour
of calm, the median of onset to alarm, and how many joins inside calm lie in a false alarm.

Cost:     as the prediction of so much video; the features of a frame are computed once
Promised: nothing
Measured: docs/results.md
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import tyro
from event_scores import count_events, event_scores, match_events

from vd.cli import run_command
from vd.config import PRETRAINED, DataConfig, EventConfig
from vd.console import check_interrupt, say
from vd.data.catalog import identify
from vd.data.manifest import CLASSES, Video, read_manifest
from vd.errors import VdError
from vd.files import write_csv, writing
from vd.predict.hysteresis import Event, EventMachine, EventRules
from vd.predict.recording import Prediction, Timeline

_TICK = Fraction(1, 90_000)  # seconds


class Part(NamedTuple):
    """A clip in a recording; times in seconds of the recording."""

    recording: str
    clip: str
    label: str
    start: float
    end: float


def main(
    dataset_path: Path,
    out: Path,
    checkpoint_dir: Path = PRETRAINED,
    cache_dir: Path = Path("cache"),
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9),
    stride_seconds: float = 0.25,
    seed: int = 0,
) -> int:
    """Join, predict, print; `cache_dir` keeps the clips' content hashes."""
    from vd.predict.predictor import load

    videos = held_back(dataset_path, checkpoint_dir, cache_dir)
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    parts, paths = list[list[Part]](), list[Path]()
    for number, (group, order) in enumerate(sorted(orders(videos, rng).items()), 1):
        paths.append(out / f"{number}-{group.replace('/', '_')}.mp4")
        parts.append(join(order, paths[-1]))
    write_csv(out / "truth.csv", [p._asdict() for own in parts for p in own])
    events = EventConfig(stride_seconds=stride_seconds)
    detector = load(checkpoint_dir, events=events)
    predictions = list(detector.predict(paths))
    for prediction in predictions:
        if prediction.probability is None or prediction.gaps:
            raise VdError(
                f"{prediction.path} was joined from clips that do not decode without "
                "gaps; leave them out of --dataset-path."
            )
    plan = detector.plan
    for threshold in (plan.rules.threshold, *thresholds):
        share = plan.rules.end_threshold / plan.rules.threshold
        rules = replace(
            plan.rules, threshold=threshold, end_threshold=share * threshold
        )
        print(json.dumps(line(parts, predictions, rules, plan.window_seconds)))
    return 0


def held_back(dataset_path: Path, run_dir: Path, cache_dir: Path) -> list[Video]:
    """The clips that a run has not seen; raises `VdError` when it has seen all."""
    from vd.evaluation.cross_dataset import unseen_videos
    from vd.evaluation.restore import moved
    from vd.features.backbone import find_backbone
    from vd.features.seen import find_seen
    from vd.training.run_folder import read_settings

    manifest = read_manifest(DataConfig(dataset_path))
    videos = [v for v in identify(manifest.videos, cache_dir) if v.id]
    config = moved(read_settings(run_dir), run_dir, None, None)
    of_backbone = find_backbone(config.backbone).seen
    data = replace(config.data, cache_dir=cache_dir)
    *_, seen = find_seen(of_backbone, videos, data, config.decode)
    kept, _ = unseen_videos(run_dir, videos, seen)
    if not kept:
        raise VdError(
            f"--dataset-path {dataset_path}: {run_dir} was trained or validated on all of "
            "its clips or on their groups, so figures would be too good; name clips that "
            "it has not seen, or a run that holds some of these back."
        )
    say(f"{len(kept)} of {len(videos)} clips were not seen by {run_dir}")
    return kept


def orders(videos: Sequence[Video], rng: np.random.Generator) -> dict[str, list[Video]]:
    """The clips of a recording for each group with both classes, in order."""
    recordings = dict[str, list[Video]]()
    for group in sorted({video.group for video in videos} - {""}):
        own = [video for video in videos if video.group == group]
        drawn = [own[index] for index in rng.permutation(len(own))]
        calm, violent = ([v for v in drawn if v.label == c] for c in (0, 1))
        if not calm or not violent:
            continue
        supply = cycle(calm)
        recordings[group] = [
            *(v for one in violent for v in (next(supply), next(supply), one)),
            next(supply),
        ]
    if not recordings:
        raise VdError(
            "no group has clips of both classes that were not seen; give the manifest a "
            "column group that names the source of each clip."
        )
    return recordings


def join(videos: Sequence[Video], path: Path) -> list[Part]:
    """Write clips one after another into an MP4 without loss; where each of them is.

    Clips of another size than the first are resized to it.
    """
    parts, start = list[Part](), 0.0
    with writing(path) as temporary, av.open(str(temporary), "w", "mp4") as output:
        stream: Any = None
        for video in videos:
            check_interrupt()
            end = start
            for frame, seconds, step in timed_frames(video.path):
                if stream is None:
                    options = {"preset": "ultrafast", "qp": "0"}
                    stream = output.add_stream("libx264", 25, options)
                    stream.codec_context.time_base = _TICK
                    stream.width, stream.height = frame.width & ~1, frame.height & ~1
                    stream.pix_fmt = "yuv420p"
                image = frame.reformat(stream.width, stream.height, "yuv420p")
                image.pts, image.time_base = round((start + seconds) / _TICK), _TICK
                output.mux(stream.encode(image))
                end = start + seconds + step
            label = CLASSES[video.label]
            parts.append(Part(path.name, video.name, label, start, end))
            start = end
        output.mux(stream.encode(None))
    return parts


def timed_frames(path: Path) -> Iterator[tuple[av.VideoFrame, float, float]]:
    """The frames of a clip, their seconds from the first, and how long one is shown."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        step, first = 1 / float(stream.average_rate or 25), float("nan")
        for index, frame in enumerate(container.decode(stream)):
            assert frame.time is not None
            first = first if index else frame.time
            yield frame, frame.time - first, step


def events_of(timeline: Timeline, rules: EventRules, window: float) -> list[Event]:
    """The events of a curve whose windows are `window` seconds long, without gaps."""
    machine, messages = EventMachine(rules), []
    for middle, probability in zip(*map(np.ndarray.tolist, timeline), strict=True):
        messages += machine.push(middle, middle + window / 2, probability)
    messages += machine.finish()
    return [message.event for message in messages if message.type == "end"]


def line(
    parts: Sequence[Sequence[Part]],
    predictions: Sequence[Prediction],
    rules: EventRules,
    window: float,
) -> dict[str, Any]:
    """The figures at one threshold."""
    counts, alarmed, joins, calm_seconds = [], 0, 0, 0.0
    for own, prediction in zip(parts, predictions, strict=True):
        events = events_of(prediction.timeline, rules, window)
        spans = np.array([(e.start, e.end) for e in events], float).reshape(-1, 2)
        score, alarm = (
            np.array([getattr(event, name) for event in events])
            for name in ("peak", "alarm_time")
        )
        violent = [(p.start, p.end) for p in own if p.label == CLASSES[1]]
        true = np.array(violent)
        matched = match_events(spans, score, true)
        counts.append(count_events(matched, alarm, true))
        false = spans[matched < 0]
        inside = [b.start for a, b in pairwise(own) if a.label == b.label == CLASSES[0]]
        joins += len(inside)
        alarmed += sum(any(start <= at < end for start, end in false) for at in inside)
        calm_seconds += sum(p.end - p.start for p in own if p.label == CLASSES[0])
    scores = event_scores(counts, calm_seconds / 3600)
    return {
        "threshold": rules.threshold,
        "recordings": len(parts),
        "calm_hours": calm_seconds / 3600,
        "true": sum(one.true for one in counts),
        "found": sum(one.found for one in counts),
        "false_alarms": sum(one.false_alarms for one in counts),
        **scores._asdict(),
        "joins_in_calm": joins,
        "joins_in_calm_alarmed": alarmed,
    }


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
