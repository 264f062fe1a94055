"""Pictures of a page: figures, and frames of misclassified clips."""

import base64
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from vd.config import DecodeConfig
from vd.data.decode import FrameSettings
from vd.data.manifest import Video
from vd.data.workers import decode_pool, decode_videos

_FRAMES, _HEIGHT, _WIDTH = 8, 84, 112  # of a strip, and the size of a frame in it
_QUALITY = 80

Frame = UInt8[np.ndarray, "H W 3"]


class Picture(NamedTuple):
    """A picture as a data URI, and what it shows, for those who do not see it."""

    source: str
    alt: str


def picture(content: bytes, kind: str, alt: str) -> Picture:
    """An image file of a kind (png, jpeg) as a picture that the page itself holds."""
    encoded = base64.b64encode(content).decode()
    return Picture(f"data:image/{kind};base64,{encoded}", alt)


def frame_strips(videos: Sequence[Video], decode: DecodeConfig) -> dict[str, Picture]:
    """Eight frames of each video by its name; none where it is gone or does not decode."""
    videos = [video for video in videos if video.path.exists()]
    strips: dict[str, Picture] = {}
    if not videos:
        return strips
    settings = FrameSettings(_HEIGHT, _WIDTH, streams=("rgb",))
    with decode_pool(settings, decode, len(videos)) as pool:
        frames: list[Frame] = []
        for piece in decode_videos([video.path for video in videos], pool):
            frames += _evenly(piece.images[:, 0])
            if piece.outcome is not None:  # the last piece of a video
                name = videos[piece.index].name
                aspect = piece.outcome.width / max(piece.outcome.height, 1)
                if piece.outcome.outcome != "quarantined" and frames:
                    alt = f"Eight frames of {name}, in order"
                    strips[name] = picture(_strip(frames, aspect), "jpeg", alt)
                frames = []
    return strips


def _evenly(frames: Sequence[Frame] | np.ndarray) -> list[Frame]:
    """Eight of the frames, evenly spaced; of none, none."""
    places = np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)
    return [frames[i].copy() for i in places] if len(frames) else []


def _strip(frames: Sequence[Frame], aspect: float) -> bytes:
    """Eight evenly spaced frames in two rows, as JPEG."""
    width = int(np.clip(round(_HEIGHT * aspect), _HEIGHT // 3, 3 * _HEIGHT))
    small = [cv2.resize(frame, (width, _HEIGHT)) for frame in _evenly(frames)]
    padded = [cv2.copyMakeBorder(f, 1, 1, 1, 1, cv2.BORDER_CONSTANT) for f in small]
    half = _FRAMES // 2
    whole = np.vstack([np.hstack(padded[:half]), np.hstack(padded[half:])])
    flags = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(whole, cv2.COLOR_RGB2BGR), flags)[1])
