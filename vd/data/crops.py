"""Crops of small grey frames, and registration: which crop of one image another shows.

A window is the left, upper, right and lower edge of a crop, in shares of the frame.
"""

import numpy as np
from jaxtyping import Float

from vd.data.fingerprints import SIDE

_BOUNDS = (-0.02, -0.02, 0.8, 0.8), (0.2, 0.2, 1.02, 1.02)  # of a window
_STEPS = 4
_NUDGE = 0.01  # of an edge
_FLAT = 1e-3  # least norm of an image, against division by 0

Images = Float[np.ndarray, "*N 16 16"]
Windows = Float[np.ndarray, "*N 4"]
Matrices = Float[np.ndarray, "*N 2 16 16"]


def sampling(windows: Windows) -> Matrices:
    """Two matrices a window: they average the columns, and the rows, within it."""
    size = (windows[..., 2:] - windows[..., :2])[..., None]
    edges = SIDE * windows[..., :2, None] + size * np.arange(SIDE + 1)
    shares = (edges[..., None] - np.arange(SIDE)).clip(0, 1)
    return np.diff(shares, axis=-2) / size[..., None]


def crop(images: Images, matrices: Matrices) -> Images:
    """Each image within its window, resized by area."""
    across, down = np.moveaxis(matrices, -3, 0)
    return down @ images @ across.swapaxes(-1, -2)


def as_coarse(images: Images, matrices: Matrices) -> Images:
    """Images at the resolution that `crop` leaves: averaged into the cells of the frame."""
    shares = matrices / np.maximum(matrices.sum(-2, keepdims=True), _FLAT)
    return crop(images, matrices @ shares.swapaxes(-1, -2))


def register(first_Cx16x16: Images, second_Cx16x16: Images, window: Windows) -> Windows:
    """The window of the first image that shows the second, from a window near it.

    Gauss-Newton steps, with slopes by differences, towards the highest correlation,
    averaged over the C channels (Evangelidis and Psarakis 2008).
    """
    target = normalized(second_Cx16x16)
    for _ in range(_STEPS):
        windows_5x4 = np.vstack([window, window + _NUDGE * np.eye(4)])
        images = normalized(crop(first_Cx16x16, sampling(windows_5x4[:, None])))
        errors_5xP = (target - images).reshape(5, -1)
        slopes_4xP = (errors_5xP[0] - errors_5xP[1:]) / _NUDGE
        step_4, *_ = np.linalg.lstsq(slopes_4xP.T, errors_5xP[0])
        window = np.clip(window + step_4, *_BOUNDS)
    return window


def normalized(images: Images) -> Images:
    """Images of mean 0 and norm 1: the sum of the product of two is their correlation."""
    centred = images - images.mean((-2, -1), keepdims=True)
    norm = np.sqrt(np.sum(centred**2, (-2, -1), keepdims=True))
    return centred / np.maximum(norm, _FLAT)
