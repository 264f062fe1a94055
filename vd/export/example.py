"""Probability of violence of video files, from model.onnx beside this file.

    python example.py VIDEO…

It needs NumPy, OpenCV and ONNX Runtime. It prints a JSON line a file: the mean over its windows
as `probability`, the highest window as `peak`, and the label by the mean. In a long recording a
short fight leaves the mean low: there use `vd predict`, which labels by events, or windows of
your own.
"""

import json
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

ROUNDING = 1.01e-3  # seconds to which files round the times of frames
TIE = 2 * ROUNDING  # between two distances that rounding can make unequal
NEAR = 0.025 + ROUNDING  # how early the last frame of a file may be the later one
STREAMS = "rgb", "motion", "square"  # that it can show
FINE = 448  # side, in pixels, of the squashed frame that squares are cut from
ENERGY, LEAST = 0.7, 112  # share of the motion in a square, and its least side
TO_YUV = np.array(  # BGR to Y, U and V, as ITU-R BT.601 defines them for video
    [
        [0.098, 0.504, 0.257, 16],
        [0.439, -0.291, -0.148, 128],
        [-0.071, -0.368, 0.439, 128],
    ],
    np.float32,
)

Settings = Mapping[str, str]  # what model.onnx says of itself


def main(paths: Sequence[str]) -> int:
    """Print a line for each file; the exit code is 1 if one could not be read."""
    session = onnxruntime.InferenceSession(
        str(Path(__file__).with_name("model.onnx")), providers=["CPUExecutionProvider"]
    )
    settings = session.get_modelmeta().custom_metadata_map
    failed = False
    for path in paths:
        images = (streams(*pair, settings) for pair in pairs(path, settings))
        logits = list(window_logits(session, images, int(settings["clip_frames"])))
        probability = peak = label = None
        if logits:
            temperature = float(settings["temperature"])
            mean = sum(logits) / len(logits)
            probability, peak = (
                1 / (1 + math.exp(-logit / temperature))
                for logit in (mean, max(logits))
            )
            violent = probability >= float(settings["threshold"])
            label = "violent" if violent else "nonviolent"
        failed |= not logits
        row = {"path": path, "probability": probability, "peak": peak, "label": label}
        print(json.dumps(row), flush=True)
    return int(failed)


def window_logits(
    session: Any, images: Iterable[np.ndarray], frames: int
) -> Iterator[float]:
    """Logit of each block of so many frames, and of a last window that ends at the end."""
    newest: deque[np.ndarray] = deque(maxlen=frames)

    def logit() -> float:
        inputs = {"images": np.array(newest)[None], "length": np.array([len(newest)])}
        return float(session.run(["logit"], inputs)[0][0])

    count = 0
    for count, image in enumerate(images, 1):
        newest.append(image)
        if count % frames == 0:
            yield logit()
    if count % frames:
        yield logit()


def pairs(path: str, settings: Settings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each kept frame with a later one, both BGR.

    The first frame of each slot of 1 / frames_per_second is kept, with the frame nearest to
    motion_gap_seconds later; one that no such frame follows is left out.
    """
    rate = float(settings["frames_per_second"])
    gap = float(settings["motion_gap_seconds"])
    waiting: deque[tuple[float, np.ndarray]] = deque()  # for their later frames
    last, slot = (-1.0, np.zeros(0)), -1  # the frame before
    for seconds, frame in timed_frames(path):
        while waiting and seconds >= waiting[0][0] + gap - ROUNDING:
            first, kept = waiting.popleft()
            late, early = seconds - first - gap, first + gap - last[0]
            yield kept, last[1] if last[0] > first and early <= late + TIE else frame
        number = math.floor((seconds + ROUNDING) * rate)
        if number > slot:
            slot = number
            waiting.append((seconds, frame))
        last = seconds, frame
    for first, kept in waiting:
        if last[0] > first and first + gap - last[0] <= NEAR:
            yield kept, last[1]


def timed_frames(path: str) -> Iterator[tuple[float, np.ndarray]]:
    """Frames, upright, with their seconds from the first one."""
    video = cv2.VideoCapture(path)
    rate, start, seconds = video.get(cv2.CAP_PROP_FPS) or 25.0, None, -1.0
    while True:
        read, frame = video.read()
        if not read:
            break
        stamp = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        start = stamp if start is None else start
        # a file without times has them by its rate
        later = stamp - start
        seconds = later if later > seconds else seconds + 1 / rate
        yield seconds, frame
    video.release()


def streams(kept: np.ndarray, later: np.ndarray, settings: Settings) -> np.ndarray:
    """What each stream shows of a kept frame and its later one: S × side × side × 3, RGB."""
    side = int(settings["size"])
    small = [resized(frame, side) for frame in (kept, later)]
    images = []
    for name in settings["streams"].split(","):
        if name == "rgb":
            image = small[0]
        elif name == "motion":
            image = difference(*small)
        else:  # square
            # OpenCV alone is nearer here, where the square hangs on sums of noise
            motion = difference(scaled(kept, FINE, FINE), scaled(later, FINE, FINE))
            image = motion[moving_square(motion)]
            if image.shape[:2] != (side, side):
                image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        images.append(image[..., ::-1])
    return np.stack(images)


def resized(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame squashed to a square as FFmpeg does it, on which the model was trained.

    FFmpeg scales brightness (Y) and colour (U, V; at half the width), rounds them, and only
    then makes RGB of them. Rounding elsewhere makes other noise of what does not move.
    """
    planes = cv2.transform(frame.astype(np.float32), TO_YUV)
    y = np.rint(scaled(planes[..., 0], side, side))
    half = np.rint(scaled(planes[..., 1:], (side + 1) // 2, side)) - 128
    u, v = np.moveaxis(np.repeat(half, 2, axis=1)[:, :side], 2, 0)
    blue, red = np.rint(1.7325 * u), np.rint(1.3707 * v)  # in steps of Y
    green = -np.rint(0.3364 * u) - np.rint(0.6982 * v)
    bgr = [np.rint(1.164383 * (y + colour - 16)) for colour in (blue, green, red)]
    return np.stack(bgr, axis=-1).clip(0, 255).astype(np.uint8)


def scaled(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Means of areas along an axis that shrinks, linear along one that grows."""
    for shape in ((width, image.shape[0]), (width, height)):
        shrinks = shape[0] < image.shape[1] or shape[1] < image.shape[0]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = cv2.resize(image, shape, interpolation=how)
    return image


def difference(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """clip(127 + later − earlier, 0, 255)."""
    return cv2.addWeighted(later, 1, earlier, -1, 127)


def moving_square(motion: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the square around the middle `ENERGY` of the motion."""
    height, width = motion.shape[:2]
    away = cv2.absdiff(motion, np.full_like(motion, 127)).reshape(height, 3 * width)
    middles, lengths = [], []
    for axis, length in ((1, height), (0, width)):
        sums = cv2.reduce(away, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        share = np.cumsum(sums.reshape(length, -1).sum(1, dtype=np.int64) + 1e-9)
        tails = (1 - ENERGY) / 2 * share[-1], (1 + ENERGY) / 2 * share[-1]
        low, high = np.searchsorted(share, tails)
        middles.append((low + high) / 2)
        lengths.append(high - low)
    side = int(np.clip(max(lengths), LEAST, min(height, width)))
    parts = []
    for middle, length in zip(middles, (height, width), strict=True):
        start = int(np.clip(middle - side / 2, 0, length - side))
        parts.append(slice(start, start + side))
    return parts[0], parts[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
