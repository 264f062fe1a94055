"""The points of the study `front.py`: what may be computed of a video."""

from dataclasses import replace
from typing import NamedTuple

from vd.config import BackboneConfig
from vd.features.backbone import PRESETS, Backbone, find_backbone


class Point(NamedTuple):
    """What is computed of a video."""

    streams: tuple[str, ...]
    size: int  # side of an image in pixels
    int8: bool = False
    views: int = 1
    change: bool = True  # read by mean and change; else by mean and deviation

    @property
    def name(self) -> str:
        """For example "motion + square, 160 px, 8 bits"."""
        views = ", two views" if self.views > 1 else ""
        read = "" if self.change else ", deviation"
        return f"{' + '.join(self.streams)}, {self.images}{views}{read}"

    @property
    def images(self) -> str:
        """Side of the images and arithmetic, for example "160 px, 8 bits"."""
        return f"{self.size} px{', 8 bits' if self.int8 else ''}"

    @property
    def config(self) -> BackboneConfig:
        """Settings of a backbone with all streams, of which the point may be a part."""
        network = "efficientnet-lite0-int8" if self.int8 else "efficientnet-lite0"
        return BackboneConfig(
            "best" if self.views > 1 else "default", network, self.size
        )

    @property
    def backbone(self) -> Backbone:
        """The backbone with just these streams."""
        return replace(find_backbone(self.config), reads=(self.streams,))

    @property
    def preset(self) -> str:
        """Name of the preset that computes just this, else nothing."""
        if not self.change:
            return ""
        own = self.backbone
        named = (p for p in PRESETS if find_backbone(BackboneConfig(p)) == own)
        return next(named, "")


ALL, _BOTH, _SQUARE = ("rgb", "motion", "square"), ("motion", "square"), ("square",)
DEFAULT = Point(ALL, 224)
PROBE = DEFAULT._replace(change=False)  # the linear probe beside every run
POINTS = (
    PROBE,
    DEFAULT,
    Point(_BOTH, 224),
    Point(_SQUARE, 224),
    Point(("motion",), 224),
    Point(ALL, 224, int8=True),
    Point(_BOTH, 224, int8=True),
    Point(("rgb", "motion"), 224, int8=True),
    Point(ALL, 160),
    Point(_BOTH, 160),
    Point(_SQUARE, 160),
    Point(("motion",), 160),
    Point(ALL, 160, int8=True),
    Point(_BOTH, 160, int8=True),
    Point(_SQUARE, 160, int8=True),
    Point(_BOTH, 160, views=2),
    Point(ALL, 224, views=2),
)
