"""Two drawn figures before a still background: poses along a path, and frames of them."""

from collections.abc import Iterator
from colorsys import hsv_to_rgb
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

KEY_POSES = 6  # on the closed path of a video

# Shift of the body in body heights, then degrees: lean, and for the near and the far
# side shoulder, elbow, hip, knee. 0 hangs down, positive is forward; knees bend back.
POSES = {
    "stand": (0.00, 0, 10, 8, 8, 4, -10, 8, -8, 4),
    "stride": (0.10, 5, -28, 15, 24, 5, 28, 20, -24, 14),
    "wave": (0.00, -2, 140, 35, 5, 3, -12, 10, -7, 4),
    "guard": (0.02, 8, 45, 95, 20, 16, 30, 110, -18, 14),
    "jab": (0.16, 14, 90, 4, 32, 24, 25, 115, -28, 6),
    "cross": (0.20, 20, 15, 115, 26, 28, 94, 0, -34, 8),
    "hook": (0.12, 10, 120, 60, 22, 20, 10, 90, -24, 10),
    "push": (0.18, 20, 84, 8, 28, 26, 76, 12, -30, 6),
    "kick": (0.08, -16, 30, 80, 84, 6, -25, 60, -6, 6),
    "recoil": (-0.16, -20, 62, 40, 14, 4, 35, 55, -26, 26),
    "duck": (-0.04, 38, 60, 110, 58, 84, 48, 115, -4, 66),
}
SCENES = (  # what the two do at a key pose, either way round
    ("stand", "wave"),
    ("stride", "stand"),
    ("guard", "guard"),
    ("jab", "recoil"),
    ("cross", "duck"),
    ("hook", "guard"),
    ("push", "recoil"),
    ("kick", "guard"),
)

Image = UInt8[np.ndarray, "H W 3"]
Points = Float64[np.ndarray, "N 2"]
Colour = Float64[np.ndarray, " 3"]


class Figure(NamedTuple):
    """A person's place and height in pixels, and looks; 1 faces right, -1 left."""

    facing: int
    x: float
    ground: float
    height: float
    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour


def random_poses(
    rng: np.random.Generator, phase_F: Float64[np.ndarray, " F"]
) -> Float64[np.ndarray, "F 2 P"]:
    """Poses of both figures, as in `POSES`, where `phase_F` key poses have gone by.

    They follow a closed path through KEY_POSES random scenes, eased at each.
    """
    scenes = rng.permutation(SCENES)[:KEY_POSES]
    keys_Kx2xP = np.array([[POSES[a] for a in rng.permutation(s)] for s in scenes])
    spread_P = np.array([0.02] + [5.0] * (keys_Kx2xP.shape[-1] - 1))
    keys_Kx2xP += spread_P * rng.normal(size=keys_Kx2xP.shape)
    before_F = np.floor(phase_F).astype(int)
    ease_F = (1 - np.cos(np.pi * (phase_F - before_F))) / 2
    here_Fx2xP = keys_Kx2xP[before_F % KEY_POSES]
    there_Fx2xP = keys_Kx2xP[(before_F + 1) % KEY_POSES]
    return here_Fx2xP + ease_F[:, None, None] * (there_Fx2xP - here_Fx2xP)


def draw_frames(
    rng: np.random.Generator,
    width: int,
    height: int,
    poses_Fx2xP: Float64[np.ndarray, "F 2 P"],
) -> Iterator[Image]:
    """RGB frames of two figures of random looks, with camera noise; sizes in pixels."""
    margin = 32
    background_HxWx3 = _background(rng, width, height)
    noise = rng.normal(0, 2, (height + margin, width + margin, 3)).astype(np.int16)
    figures = [_figure(rng, width, height, facing) for facing in (1, -1)]
    for poses_2xP in poses_Fx2xP:
        image_HxWx3 = background_HxWx3.copy()
        for figure, pose_P in zip(figures, poses_2xP, strict=True):
            _draw_figure(image_HxWx3, figure, pose_P)
        y, x = rng.integers(margin, size=2)
        shifted = noise[y : y + height, x : x + width]
        yield cv2.add(image_HxWx3, shifted, dtype=cv2.CV_8U)


def _background(rng: np.random.Generator, width: int, height: int) -> Image:
    """A blotchy wall with a few panels, and a floor."""
    horizon = int(height * rng.uniform(0.6, 0.8))
    image = np.empty((height, width, 3))
    image[:horizon] = rng.uniform(110, 220) + rng.uniform(-25, 25, 3)
    for _ in range(rng.integers(2, 6)):
        left, panel = rng.uniform(0, width), rng.uniform(0.08, 0.25) * width
        top, bottom = sorted(rng.uniform(0, horizon, 2).astype(int))
        image[top:bottom, int(left) : int(left + panel)] += rng.uniform(-40, 40, 3)
    image[horizon:] = rng.uniform(60, 160) + rng.uniform(-25, 25, 3)
    for cells, strength in ((6, 14), (40, 7)):
        coarse = rng.normal(0, strength, (cells * height // width, cells))
        blotches = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image += blotches[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def _figure(rng: np.random.Generator, width: int, height: int, facing: int) -> Figure:
    """Someone about a quarter of a body height off the middle, looking at it."""
    tall = height * rng.uniform(0.68, 0.78)
    x = width / 2 - facing * tall * rng.uniform(0.26, 0.36)
    skin = np.array((232.0, 190.0, 160.0)) * rng.uniform(0.45, 1)
    hair = np.array((110.0, 80.0, 55.0)) * rng.uniform(0.2, 1)
    shirt = 255 * np.array(hsv_to_rgb(rng.random(), 0.75, rng.uniform(0.6, 0.95)))
    trousers = 255 * np.array(hsv_to_rgb(rng.random(), 0.4, rng.uniform(0.2, 0.5)))
    ground = height * rng.uniform(0.9, 0.95)
    return Figure(facing, x, ground, tall, skin, hair, shirt, trousers)


def _draw_figure(
    image: Image, figure: Figure, pose_P: Float64[np.ndarray, " P"]
) -> None:
    """Draw a person in place, the far limbs first and darker."""
    _, _, _, tall, skin, hair, shirt, trousers = figure
    trunk, arms, legs = _skeleton(figure, pose_P)

    def draw_arm(arm: Points, shade: float) -> None:
        _stroke(image, arm[2:], 0.05 * tall, skin * shade)
        _stroke(image, arm[:3], 0.06 * tall, shirt * shade)

    def draw_leg(leg: Points, shade: float) -> None:
        _stroke(image, leg[2:], 0.05 * tall, hair * shade)
        _stroke(image, leg[:3], 0.08 * tall, trousers * shade)

    draw_arm(arms[1], 0.7)
    draw_leg(legs[1], 0.7)
    draw_leg(legs[0], 1.0)
    back_of_head = trunk[3:] - 0.015 * tall * np.array((figure.facing, 1))
    _stroke(image, trunk[2:4], 0.05 * tall, skin * 0.85)
    _stroke(image, trunk[:2], 0.14 * tall, shirt)
    _stroke(image, back_of_head, 0.12 * tall, hair)
    _stroke(image, trunk[3:], 0.1 * tall, skin)
    draw_arm(arms[0], 1.0)


def _skeleton(
    figure: Figure, pose_P: Float64[np.ndarray, " P"]
) -> tuple[Points, list[Points], list[Points]]:
    """Trunk from hip to crown, arms to the fingers, legs to the toes, in pixels."""
    shift, lean, *near_far = pose_P

    def chain(start: Points, *bones: tuple[float, float]) -> Points:
        """Joints from `start` on, by degrees and lengths in body heights."""
        degrees, lengths = np.array(bones).T
        across = figure.facing * np.sin(np.radians(degrees))
        down = np.cos(np.radians(degrees))
        bones_Nx2 = figure.height * lengths[:, None] * np.stack((across, down), axis=1)
        return start + np.vstack((np.zeros(2), np.cumsum(bones_Nx2, axis=0)))

    hip = np.array((figure.x + figure.facing * shift * figure.height, 0.0))
    arms, legs = [], []
    for _, _, thigh, knee in (near_far[:4], near_far[4:]):
        shin = thigh - knee
        legs.append(chain(hip, (thigh, 0.23), (shin, 0.22), (shin + 80, 0.06)))
    fall = np.array((0.0, figure.ground - max(leg[2, 1] for leg in legs)))
    up = 180 - lean
    trunk = chain(hip + fall, (up, 0.25), (up, 0.05), (up + lean / 2, 0.05), (up, 0.06))
    for upper, elbow, _, _ in (near_far[:4], near_far[4:]):
        lower = upper + elbow
        arms.append(chain(trunk[1], (upper, 0.16), (lower, 0.14), (lower, 0.03)))
    return trunk, arms, [leg + fall for leg in legs]


def _stroke(image: Image, points: Points, thickness: float, colour: Colour) -> None:
    """A round-ended outlined line through points, to a sixteenth of a pixel."""
    fixed = np.round(points * 16).astype(np.int32)
    for shade, width in ((colour * 0.5, thickness + 2), (colour, thickness)):
        rgb = tuple(shade.tolist())
        cv2.polylines(image, [fixed], False, rgb, round(width), cv2.LINE_AA, 4)
