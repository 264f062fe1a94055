"""Measure the ranges of EfficientNet-Lite0's tensors, for its 8-bit form.

    python experiments/quantize.py --dataset-paths SCFD HOCKEY

Frames and their motion from clips that a seed draws go through the float network; of each
tensor that ReLU6 does not bound the least and the greatest value are kept, without one in
ten thousand at either end. No label is seen.
Cost:     half a minute
Written:  vd/features/efficientnet_ranges.json
"""

from pathlib import Path

import numpy as np
import tyro

from vd.cli import run_command
from vd.config import DataConfig, DecodeConfig
from vd.data.decode import FrameSettings
from vd.data.manifest import read_manifest
from vd.data.workers import decode_pool, decode_videos
from vd.features.efficientnet import RANGES_FILE, architecture, onnx_model
from vd.files import write_json

NAME = "efficientnet-lite0"
TAIL = 0.01  # percent
SAMPLE = 30_000  # values of a tensor and batch


def unbounded() -> list[str]:
    """Tensors without ReLU6, in the order of the graph."""
    names = []
    for block in architecture(NAME):
        names += [conv.name for conv in block.convs if not conv.relu6]
        if block.residual:
            names.append(f"{block.convs[0].name.split('_')[0]}_sum")
    return names


def outputs() -> list[str]:
    """The graph's names of these tensors: sums, and convolutions that no Clip follows."""
    nodes = onnx_model(NAME).graph.node
    clipped = {node.input[0] for node in nodes if node.op_type == "Clip"}
    return [
        node.output[0]
        for node in nodes
        if node.op_type == "Add"
        or (node.op_type == "Conv" and node.output[0] not in clipped)
    ]


def main(dataset_paths: tuple[Path, ...], clips: int = 80, seed: int = 0) -> int:
    """Write the ranges over `clips` clips of each data set, four images a clip."""
    import onnxruntime
    from onnx import TensorProto, helper

    model, names = onnx_model(NAME), unbounded()
    for output in outputs():
        model.graph.output.append(
            helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    draw = np.random.default_rng(seed)
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path in dataset_paths:
        videos = read_manifest(DataConfig(path)).videos
        chosen = draw.permutation(len(videos))[:clips]
        paths = [videos[i].path for i in chosen]
        with decode_pool(FrameSettings(), DecodeConfig(), len(paths)) as pool:
            for piece in decode_videos(paths, pool):
                count = len(piece.images)
                if not count:
                    continue
                images = piece.images[[count // 3, 2 * count // 3]]
                flat = images.reshape(-1, *images.shape[2:])
                made = session.run(outputs(), {"images": flat})
                for name, value in zip(names, made, strict=True):
                    values[name].append(draw.choice(value.ravel(), SAMPLE))
    ranges = {
        name: np.percentile(np.concatenate(v), [TAIL, 100 - TAIL]).round(4).tolist()
        for name, v in values.items()
    }
    write_json(RANGES_FILE, {NAME: ranges})
    return 0


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
