"""Measure the ranges of EfficientNet-Lite0's tensors, for its 8-bit form.

    python experiments/quantize.py --dataset-paths SCFD HOCKEY

Frames and their motion from clips that a seed draws go through the float network; of each
tensor that ReLU6 does not bound the least and the greatest value are kept, without one in
ten thousand at either end. No label is seen.
Cost:     half a minute
Written:  vd/features/efficientnet_ranges.json. The committed file was measured on a sample of
          30,000 values a tensor and clip; all values, as here, move its ends by up to 2 %.
          Other ranges are other features: those of the 8-bit network are extracted again.
"""

from pathlib import Path

import numpy as np
import tyro

from vd.cli import run_command
from vd.config import DataConfig, DecodeConfig
from vd.data.decode import FrameSettings
from vd.data.manifest import read_manifest
from vd.data.workers import decode_pool, decode_videos
from vd.features.efficientnet import RANGES_FILE
from vd.features.efficientnet_onnx import measured_ranges
from vd.features.network import built_in_network
from vd.files import write_json

NAME = "efficientnet-lite0"


def main(
    dataset_paths: tuple[Path, ...],
    clips: int = 80,
    seed: int = 0,
    out: Path = RANGES_FILE,
) -> int:
    """Write the ranges over `clips` clips of each data set, four images a clip."""
    draw = np.random.default_rng(seed)
    images = []
    for path in dataset_paths:
        videos = read_manifest(DataConfig(path)).videos
        chosen = draw.permutation(len(videos))[:clips]
        paths = [videos[i].path for i in chosen]
        with decode_pool(FrameSettings(), DecodeConfig(), len(paths)) as pool:
            for piece in decode_videos(paths, pool):
                count = len(piece.images)
                if count:
                    some = piece.images[[count // 3, 2 * count // 3]]
                    images.append(some.reshape(-1, *some.shape[2:]))
    ranges = measured_ranges(built_in_network(NAME), np.concatenate(images))
    write_json(out, {NAME: ranges})
    return 0


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
