"""Rendered videos of two figures that differ between the classes in motion alone.

A clip walks along a closed path through key poses, eased at each. Its format, its looks,
its path and where on the path it starts (uniformly, all the way round) are drawn
without the class. Only the clock that drives it along differs: slow and steady when
nonviolent, sudden irregular bursts when violent. A uniform start plus any clock is
uniform again, so a single frame has the same distribution in both classes. Every frame
is coded on its own at a fixed quantizer: else, as in most video, artefacts and file
sizes would depend on motion too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Float64

from vd.console import track
from vd.errors import VdError
from vd.files import remove_orphans, write_json, writing

from .figures import KEY_POSES, draw_frames, random_poses

CLASSES = ("nonviolent", "violent")
SIZES = ((320, 240), (352, 288), (426, 240))  # width and height in pixels
FRAME_RATES = (15, 20, 25, 30)
VERSION = 1  # of the drawing: another one makes other videos of the same seed


class Format(NamedTuple):
    """What the metadata of a clip say."""

    width: int
    height: int
    frame_rate: int
    frames: int


def render_dataset(root: Path, *, clips: Mapping[str, int], seed: int) -> Path:
    """Render `clips[split]` clips a split, half of them a class, and return `root`.

    Writes `root/<split>/<violent|nonviolent>/clip_0001.mp4` and so on: 15 to 30 frames/s
    for 1.6 to 2.4 s, yuv420p, H.264, or MPEG-4 where FFmpeg has no x264. Clip n of either
    class has the same width, height, frame rate and frame count. A clip depends on
    (seed, split, class, n) alone and those that exist are kept, so a killed rendering
    continues and a finished one costs nothing.

    Raises VdError when a split's count is odd or not positive, when the seed is
    negative, when `root` holds anything but this rendering or cannot be written.
    """
    _check_seed(seed)
    for split, count in clips.items():
        if count < 2 or count % 2:
            raise VdError(
                f"{count} clips cannot be rendered for {split}, since half go to each "
                "class; give an even number above 0."
            )
    _claim(root, {"seed": seed, "clips": dict(clips), "version": VERSION})
    with track("rendering", sum(clips.values()), "clips") as ticker:
        for split, count in clips.items():
            for label, name in enumerate(CLASSES):
                folder = root / split / name
                remove_orphans(folder)
                for n in range(1, count // 2 + 1):
                    path = folder / f"clip_{n:04d}.mp4"
                    if not path.exists():
                        _render_clip(path, [seed, *split.encode()], label, n)
                    ticker.advance()
    return root


def render_episode(
    path: Path, *, calm_seconds: float, violent_seconds: float, seed: int
) -> tuple[tuple[float, float], ...]:
    """Render calm, violent, calm, violent, calm into one MP4 of the same two figures.

    Each calm stretch lasts `calm_seconds` and moves as nonviolent clips do, each violent
    one `violent_seconds`; 320 × 240 pixels, 25 frames/s, coded as the clips are. Returns
    start and end of the violent stretches in seconds. A finished video is kept.

    Raises VdError when a length is under 0.1 s, when the seed is negative, when `path`
    holds anything but this video or cannot be written.
    """
    _check_seed(seed)
    if min(calm_seconds, violent_seconds) < 0.1:
        raise VdError(
            f"stretches of {calm_seconds} and {violent_seconds} s cannot be rendered; "
            "give 0.1 s or more."
        )
    lengths = (calm_seconds, violent_seconds) * 2 + (calm_seconds,)
    ends = np.cumsum(lengths).tolist()
    identity = json.dumps({"seed": seed, "ends": ends, "version": VERSION})
    remove_orphans(path.parent)
    if not path.exists():
        form = Format(320, 240, 25, round(ends[-1] * 25))
        rng = np.random.default_rng([seed, *b"episode"])
        phase_F = np.full(form.frames, rng.uniform(0, KEY_POSES))
        seconds_F = np.arange(form.frames) / form.frame_rate
        for n, (end, length) in enumerate(zip(ends, lengths, strict=True)):
            inside_F = np.clip(seconds_F - (end - length), 0, length)
            phase_F += _clock(rng, inside_F, violent=n % 2 == 1)
        _render(path, rng, form, phase_F, comment=identity)
    elif _comment(path) != identity:
        raise VdError(
            f"{path} is not the video to be rendered there; delete it or choose another "
            "name."
        )
    return tuple((end - violent_seconds, end) for end in ends[1::2])


def _check_seed(seed: int) -> None:
    """NumPy's generators take no negative seed."""
    if seed < 0:
        raise VdError(f"the render seed {seed} is negative; give 0 or more.")


def _claim(root: Path, identity: dict[str, object]) -> None:
    """Leave the identity of the rendering in a new folder, or find the same there."""
    marker = root / ".rendered.json"
    remove_orphans(root)
    if marker.is_file():
        if json.loads(marker.read_text()) != identity:
            raise VdError(
                f"{root} holds clips rendered with another seed, count or version; "
                "delete it or choose another folder."
            )
    elif root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise VdError(
            f"{root} exists and is no folder of rendered clips; choose another folder."
        )
    else:
        write_json(marker, identity)


def _render_clip(path: Path, key: list[int], label: int, n: int) -> None:
    """Draw and encode clip `n` of a class."""
    form = _draw_format(np.random.default_rng([*key, n]))
    rng = np.random.default_rng([*key, n, label + 1])
    start = rng.uniform(0, KEY_POSES)
    seconds_F = np.arange(form.frames) / form.frame_rate
    phase_F = start + _clock(rng, seconds_F, violent=CLASSES[label] == "violent")
    _render(path, rng, form, phase_F)


def _draw_format(rng: np.random.Generator) -> Format:
    """Size, frame rate, and 1.6 to 2.4 s of frames."""
    width, height = SIZES[rng.integers(len(SIZES))]
    frame_rate = FRAME_RATES[rng.integers(len(FRAME_RATES))]
    return Format(width, height, frame_rate, round(rng.uniform(1.6, 2.4) * frame_rate))


def _clock(
    rng: np.random.Generator, seconds_F: Float64[np.ndarray, " F"], *, violent: bool
) -> Float64[np.ndarray, " F"]:
    """Key poses gone by at each time: the one thing that the class decides."""
    if not violent:
        return rng.choice((-1, 1)) * rng.uniform(0.2, 0.4) * seconds_F
    bursts = max(16, round(seconds_F[-1] / 0.15))  # to the end, however close they fall
    starts_B = np.cumsum(rng.uniform(0.15, 0.4, bursts)) - 0.2
    lengths_B = rng.uniform(0.08, 0.18, bursts)  # seconds a burst
    steps_B = rng.choice((-1, 1), bursts) * rng.uniform(0.7, 1.3, bursts)
    done_FxB = np.clip((seconds_F[:, None] - starts_B) / lengths_B, 0, 1)
    return done_FxB @ steps_B


def _render(
    path: Path,
    rng: np.random.Generator,
    form: Format,
    phase_F: Float64[np.ndarray, " F"],
    comment: str = "",
) -> None:
    """Draw figures along a path into an MP4 of key frames, at a fixed quantizer."""
    codec, options = "mpeg4", {"qmin": "6", "qmax": "6"}
    if "libx264" in av.codecs_available:
        codec, options = "libx264", {"preset": "ultrafast", "qp": "30"}
    poses_Fx2xP = random_poses(rng, phase_F)
    with writing(path) as temporary, av.open(str(temporary), "w", "mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream(codec, form.frame_rate, options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = form.width, form.height
        stream.pix_fmt, stream.gop_size, stream.thread_count = "yuv420p", 1, 1
        for image_HxWx3 in draw_frames(rng, form.width, form.height, poses_Fx2xP):
            frame = av.VideoFrame.from_ndarray(image_HxWx3, "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _comment(path: Path) -> str | None:
    """The comment in a video, if the file is one."""
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment")
    except (av.FFmpegError, OSError):
        return None
