"""Study: which features are worth their cost? Motion gaps, pooling, size, crops, int8.

    python experiments/features.py --dataset-path SCFD --cache-dir CACHE
    python experiments/features.py --dataset-path HOCKEY --cache-dir CACHE

A probe, not the model: logistic regression on mean and deviation over a clip's frames, 8 a
second. Features of all variants are kept in CACHE/variants, one file a clip.
Cost:     14 images a frame: 57,000 for 240 clips of SCFD, 109,000 for 600 of hockey
Measured: docs/results.md, "Features"
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import tyro
from jaxtyping import Float, Float32, UInt8
from probe import Variant, mean_and_deviation, table

from vd.cli import run_command
from vd.config import DataConfig, usable_cores
from vd.console import track
from vd.data.catalog import identify
from vd.data.manifest import read_manifest
from vd.features.efficientnet_onnx import onnx_model, quantized_model
from vd.features.network import built_in_network
from vd.files import writing

RATE, SIDE, FINE = 8, 224, 448  # frames a second; sides of the network's image and ours
LARGE = 320
GAPS = (0.1, 0.2, 0.4)  # seconds
ENERGY = 0.7  # of the motion lies in the square, on each axis
LEAST = 112  # side of the square, in pixels of FINE

Image = UInt8[np.ndarray, "H W 3"]
Map = Float32[np.ndarray, "N 1280 h w"]


def read_frames(path: Path) -> tuple[list[float], list[Image]]:
    """Times and frames of a short clip, squashed to FINE × FINE."""
    times, images = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            times.append(float(frame.time or 0.0))
            image = frame.reformat(FINE, FINE, "rgb24", interpolation="AREA")
            images.append(image.to_ndarray())
    return times, images


def frame_pairs(times: list[float]) -> Iterator[tuple[int, list[int]]]:
    """The first frame of each slot, and the one nearest to each gap after it.

    Frames without a later one for the shortest gap are left out; a longer gap takes the
    last frame there.
    """
    step = float(np.median(np.diff(times)))
    slots = np.floor((np.array(times) - times[0] + 1e-3) * RATE)
    for first in np.unique(slots, return_index=True)[1]:
        after = [
            np.searchsorted(times, times[first] + gap - step / 2 - 1e-3) for gap in GAPS
        ]
        if after[0] < len(times):
            yield int(first), [min(int(later), len(times) - 1) for later in after]


def motion(earlier: Image, later: Image) -> Image:
    """The signed difference around 127."""
    difference = 127 + later.astype(np.int16) - earlier
    return np.clip(difference, 0, 255).astype(np.uint8)


def moving_square(energy_HxW: Float[np.ndarray, "H W"]) -> tuple[slice, slice]:
    """The square around the middle share of the motion energy, on both axes."""
    ends = []
    for axis in (1, 0):
        share = np.cumsum(energy_HxW.sum(axis) + 1e-9)
        share /= share[-1]
        ends.append(np.searchsorted(share, [(1 - ENERGY) / 2, (1 + ENERGY) / 2]))
    side = int(np.clip(max(high - low for low, high in ends), LEAST, FINE))
    starts = [np.clip((low + high - side) // 2, 0, FINE - side) for low, high in ends]
    rows, columns = (slice(int(start), int(start) + side) for start in starts)
    return rows, columns


def images_of(path: Path) -> dict[str, UInt8[np.ndarray, "F H W 3"]]:
    """All images of a clip that some variant wants."""
    times, frames = read_frames(path)
    pairs = list(frame_pairs(times))
    moved = [[motion(frames[i], frames[j]) for i, j in zip([a] * 3, later, strict=True)]
             for a, later in pairs]  # fmt: skip
    energies = [np.abs(images[0].astype(np.float32) - 127).sum(2) for images in moved]
    squares = [moving_square(energy) for energy in energies]
    whole = moving_square(np.sum(energies, axis=0))
    fine = {
        "rgb": [frames[first] for first, _ in pairs],
        **{f"motion {g}": [m[i] for m in moved] for i, g in enumerate(GAPS)},
        "rgb crop": [frames[p[0]][s] for p, s in zip(pairs, squares, strict=True)],
        "motion crop": [m[0][s] for m, s in zip(moved, squares, strict=True)],
        "motion clip crop": [m[0][whole] for m in moved],
    }
    made = {name: resized(images, SIDE) for name, images in fine.items()}
    for name in ("rgb", "motion 0.1"):
        made[f"{name} large"] = resized(fine[name], LARGE)
        made[f"{name} mirrored"] = np.ascontiguousarray(made[name][:, :, ::-1])
        made[f"{name} int8"] = made[name]
    return made


def resized(images: list[Image], side: int) -> UInt8[np.ndarray, "F H W 3"]:
    """Images of one side, by area."""
    size = side, side
    return np.stack([cv2.resize(i, size, interpolation=cv2.INTER_AREA) for i in images])


def network(side: int, integers: bool = False) -> Callable[[np.ndarray], Map]:
    """EfficientNet-Lite0 up to its last maps, for images of `side`."""
    import onnxruntime
    from onnx import TensorProto, helper

    lite0 = replace(built_in_network("efficientnet-lite0"), size=side)
    model = quantized_model(lite0) if integers else onnx_model(lite0)
    last = model.graph.node[-2].input[0]
    model.graph.output.append(
        helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )

    def run(images: np.ndarray) -> Map:
        parts = [
            session.run([last], {"images": images[i : i + 4]})[0]
            for i in range(0, len(images), 4)
        ]
        return np.concatenate(parts)

    return run


def extract(todo: dict[Path, Path]) -> None:
    """Write the features of every variant, F × D each, to each clip's file."""
    networks = {"": network(SIDE), "large": network(LARGE), "int8": network(SIDE, True)}
    with track("extracting", len(todo), "clips") as ticker:
        for path, file in todo.items():
            made = {}
            for name, images in images_of(path).items():
                maps = networks.get(name.split()[-1], networks[""])(images)
                made[name] = maps.mean((2, 3))
                if name in ("rgb", "motion 0.1"):
                    made[f"{name} max"] = maps.max((2, 3))
                    made[f"{name} gem"] = np.mean(maps**3, axis=(2, 3)) ** (1 / 3)
            with writing(file) as temporary, open(temporary, "wb") as handle:
                np.savez(handle, **{k: v.astype(np.float16) for k, v in made.items()})
            ticker.advance()


VARIANTS: dict[str, tuple[str, ...]] = {
    "RGB and motion": ("rgb", "motion 0.1"),
    "RGB": ("rgb",),
    "motion": ("motion 0.1",),
    "int8": ("rgb int8", "motion 0.1 int8"),
    "motion over 0.2 s": ("rgb", "motion 0.2"),
    "motion over 0.4 s": ("rgb", "motion 0.4"),
    "motion over 0.1 and 0.2 s": ("rgb", "motion 0.1", "motion 0.2"),
    "motion over 0.1 and 0.4 s": ("rgb", "motion 0.1", "motion 0.4"),
    "maximum for mean": ("rgb max", "motion 0.1 max"),
    "generalised mean (3)": ("rgb gem", "motion 0.1 gem"),
    "mean and maximum": ("rgb", "motion 0.1", "rgb max", "motion 0.1 max"),
    "320 pixels": ("rgb large", "motion 0.1 large"),
    "motion of the moving square": ("rgb", "motion crop"),
    "both motions": ("rgb", "motion 0.1", "motion crop"),
    "both motions, square of the clip": ("rgb", "motion 0.1", "motion clip crop"),
    "both motions, both RGB": ("rgb", "motion 0.1", "motion crop", "rgb crop"),
    "both motions, no RGB": ("motion 0.1", "motion crop"),
}
MIRRORED = ("rgb mirrored", "motion 0.1 mirrored")


def main(dataset_path: Path, cache_dir: Path, seeds: int = 5) -> int:
    """Extract what is missing, then print a row a variant; `seeds` draw the folds."""
    manifest = read_manifest(DataConfig(dataset_path))
    videos = identify(manifest.videos, cache_dir)
    files = {v.path: cache_dir / f"variants/{v.id}.npz" for v in videos}
    extract({path: f for path, f in files.items() if not f.exists()})
    clips = [dict(np.load(file)) for file in files.values()]

    def pooled(names: tuple[str, ...]) -> Float[np.ndarray, "1 N P"]:
        rows = [np.concatenate([c[n] for n in names], 1)[None] for c in clips]
        return np.stack([mean_and_deviation(row) for row in rows], axis=1)

    def variants() -> Iterator[Variant]:
        for name, streams in VARIANTS.items():
            inputs = {s.removesuffix(" max").removesuffix(" gem") for s in streams}
            images = float(np.mean([len(clip["rgb"]) for clip in clips])) * len(inputs)
            yield Variant(name, images, pooled(streams))
            if name == "RGB and motion":
                both = np.concatenate([pooled(streams), pooled(MIRRORED)])
                yield Variant("two views averaged", 2 * images, both, 2)

    table(videos, variants(), seeds)
    return 0


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
