"""Crops of small grey frames, and registration: which crop of one image another shows.

A window is the left, upper, right and lower edge of a crop, in shares of the frame.
"""

import numpy as np
from jaxtyping import Float32

from vd.audit.fingerprints import SIDE

_STEPS = 4
_LEAST, _MOST = -0.02, 0.2  # of a border that a window may cut
_DAMPING = 0.01  # of the Gauss-Newton steps, relative to the mean curvature
_FLAT = 1e-3  # least norm of an image, against division by 0

Images = Float32[np.ndarray, "*N 16 16"]
Windows = Float32[np.ndarray, "*N 4"]


def sampling(begin: np.ndarray, end: np.ndarray) -> Images:
    """Matrices that average the cells of a line into as many cells of a part of it."""
    size = (end - begin)[..., None]
    edges = SIDE * begin[..., None] + size * np.arange(SIDE + 1)
    shares = (edges[..., None] - np.arange(SIDE)).clip(0, 1)
    return (np.diff(shares, axis=-2) / size[..., None]).astype(np.float32)


def crop(images: Images, windows: Windows) -> Images:
    """Each image within its window, resized by area."""
    left, top, right, bottom = np.moveaxis(windows, -1, 0)
    return sampling(top, bottom) @ images @ sampling(left, right).swapaxes(-1, -2)


def as_coarse(images: Images, window: Windows) -> Images:
    """Images at the resolution that `crop` leaves: averaged into the cells of the frame."""
    across, down = (
        matrix @ (matrix / np.maximum(matrix.sum(0), _FLAT)).T
        for matrix in (sampling(*window[0::2]), sampling(*window[1::2]))
    )
    return down @ images @ across.T


def register(
    first_NxCx16x16: Images, second_NxCx16x16: Images, windows_Nx4: Windows
) -> Windows:
    """The windows of the first images that show the second, from windows near them.

    Gauss-Newton steps towards the highest correlation, averaged over the C channels
    (Evangelidis and Psarakis 2008).
    """
    target = normalized(second_NxCx16x16)
    best_Nx4, least_N = windows_Nx4, np.full(len(windows_Nx4), np.inf)
    for _ in range(_STEPS):
        images = crop(first_NxCx16x16, windows_Nx4[:, None])
        error = target - normalized(images)
        squares_N = np.sum(error**2, (1, 2, 3))
        better_N = squares_N < least_N
        best_Nx4 = np.where(better_N[:, None], windows_Nx4, best_Nx4)
        least_N = np.minimum(squares_N, least_N)
        slopes = _slopes(images, windows_Nx4)
        curvature = slopes @ slopes.swapaxes(1, 2)
        damping = _DAMPING * np.trace(curvature, axis1=1, axis2=2) + _FLAT
        curvature += damping[:, None, None] * np.eye(4, dtype=np.float32)
        gradient = slopes @ error.reshape(len(error), -1, 1)
        windows_Nx4 = windows_Nx4 + np.linalg.solve(curvature, gradient)[:, :, 0]
        windows_Nx4[:, :2] = windows_Nx4[:, :2].clip(_LEAST, _MOST)
        windows_Nx4[:, 2:] = windows_Nx4[:, 2:].clip(1 - _MOST, 1 - _LEAST)
    return best_Nx4


def _slopes(
    images_NxCx16x16: Images, windows_Nx4: Windows
) -> Float32[np.ndarray, "N 4 P"]:
    """How the normalized crops change with each edge of their windows, by pixel."""
    # an edge moves a point by the point's share of the distance to the opposite edge
    far = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    near = 1 - far
    down, across = np.gradient(images_NxCx16x16, 1 / SIDE, axis=(2, 3))
    moves = across * near, down * near[:, None], across * far, down * far[:, None]
    sizes_Nx4 = np.tile(windows_Nx4[:, 2:] - windows_Nx4[:, :2], 2)
    slopes = np.stack(moves, axis=1) / sizes_Nx4[:, :, None, None, None]
    slopes /= _norm(images_NxCx16x16)[:, None]
    slopes -= slopes.mean((3, 4), keepdims=True)
    return slopes.reshape(len(slopes), 4, -1)


def normalized(images: Images) -> Images:
    """Images of mean 0 and norm 1: the sum of the product of two is their correlation."""
    return (images - images.mean((-2, -1), keepdims=True)) / _norm(images)


def _norm(images: Images) -> Images:
    return np.maximum(images.std((-2, -1), keepdims=True) * SIDE, _FLAT)
