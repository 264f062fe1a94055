"""All frames of one video at once, and its outcome, at the size of the rendered clips."""

from itertools import pairwise

import numpy as np

from vd.data.decode import FrameSettings, Sink, decode
from vd.data.outcome import Outcome

SMALL = FrameSettings(height=48, width=64)  # the size of the rendered clips


class Recorder(Sink):
    """A sink that notes all calls."""

    def __init__(self) -> None:
        self.headers: list[Outcome] = []
        self.images: list[np.ndarray] = []
        self.seconds: list[float] = []
        self.frames: list[int] = []
        self.gaps: list[int] = []  # frames kept before each
        self.stretches: list[int] = []  # frames kept at the end of each

    def header(self, header):
        self.headers.append(header)

    def keep(self, images, seconds, frames):
        self.images.append(images)
        self.seconds.append(seconds)
        self.frames.append(frames)

    def gap(self):
        self.gaps.append(len(self.seconds))

    def stretch(self):
        self.stretches.append(len(self.seconds))


def record(path, settings=SMALL, **options):
    """What a file gave, and its outcome."""
    sink = Recorder()
    result = decode(path, settings, sink, **options)
    assert all(a < b for a, b in pairwise(sink.seconds))
    assert sink.frames == sorted(sink.frames)
    return sink, result


def decode_all(path, settings=SMALL):
    """All kept images of a file, and its outcome."""
    sink, result = record(path, settings)
    shape = len(settings.streams), settings.height, settings.width, 3
    assert all(i.dtype == np.uint8 and i.shape == shape for i in sink.images)
    return np.array(sink.images, np.uint8).reshape(-1, *shape), result


def outcome(path, settings=SMALL):
    return decode(path, settings, Sink(), images=False)
