"""All frames of one video at once, and its outcome, at the size of the rendered clips."""

import numpy as np

from vd.data.decode import FrameSettings, Position, decode_stretch
from vd.data.outcome import outcome_of

SMALL = FrameSettings(height=48, width=64)  # the size of the rendered clips


def decode(path, seconds=60.0, settings=SMALL):
    """All kept images of a file, and its outcome."""
    images, tallies, position = [], [], Position()
    while position is not None:
        stretch = decode_stretch(path, settings, position, seconds, images.append)
        tallies.append(stretch.tally)
        position = stretch.next
        assert len(tallies) < 100
    shape = len(settings.streams), settings.height, settings.width, 3
    images_FxSxHxWx3 = np.array(images, np.uint8).reshape(-1, *shape)
    assert all(image.dtype == np.uint8 and image.shape == shape for image in images)
    assert len(images_FxSxHxWx3) == sum(tally.kept for tally in tallies)
    return images_FxSxHxWx3, outcome_of(tallies)


def outcome(path, **options):
    return decode(path, **options)[1]
