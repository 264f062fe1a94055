"""Peak memory while one long video is extracted: all processes and shared memory together.

    python -m benchmarks.long_video --folder SCRATCH --hours 2

A rendered video of 320 × 240 at 25 frames a second, with preset best (three streams, two
views). `--stand-in` puts a network of the same width in the backbone's place, whose cost is
near none: what a video's length may take is frames and features, and these are as large.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import onnx
import tyro
from onnx import TensorProto, helper, numpy_helper

from benchmarks.scratch import scratch

RATE, WIDTH, HEIGHT = 25, 320, 240


def main(folder: Path, hours: float = 2.0, stand_in: bool = False) -> None:
    """A JSON line; what is written into `folder` is removed at the end."""
    with scratch(folder):
        for name in ("fight", "normal"):
            (folder / "set" / name).mkdir(parents=True)
        render(folder / "set" / "fight" / "long.mkv", hours)
        render(folder / "set" / "normal" / "short.mkv", 1 / 360)
        command = [
            sys.executable, "-m", "vd.cli", "extract", "--dataset-path", folder / "set",
            "--cache-dir", folder / "cache", "--feature-preset", "best",
        ]  # fmt: skip
        if stand_in:
            command += ["--backbone", write_stand_in(folder / "wide.onnx")]
        began, peak = time.perf_counter(), 0
        with subprocess.Popen(list(map(str, command))) as process:
            while process.poll() is None:
                peak = max(peak, memory(process.pid))
                time.sleep(0.1)
        if process.returncode:
            sys.exit(process.returncode)
        line = {
            "benchmark": "long_video",
            "peer": "bound",
            "unit": "MB",
            "ours": round(peak / 1e6),
            "theirs": 1000,
            "ratio": round(1e9 / peak, 3),
            "hours": hours,
            "seconds": round(time.perf_counter() - began),
            "stand_in": stand_in,
        }
        print(json.dumps(line), flush=True)


def render(path: Path, hours: float) -> None:
    """One key frame many times over: quick to write, and every frame is decoded."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", RATE, {"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        packets = stream.encode(av.VideoFrame.from_ndarray(noise, "rgb24"))
        content = bytes((packets + stream.encode(None))[0])
        for index in range(round(hours * 3600 * RATE)):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, RATE)
            packet.pts = packet.dts = index
            packet.is_keyframe = True
            container.mux(packet)


def write_stand_in(path: Path, size: int = 224, dim: int = 1280) -> Path:
    """A network as wide as the backbone: mean colours of 256 squares, mixed."""
    weights = np.random.default_rng(0).normal(0, 1e-4, (768, dim)).astype(np.float32)
    side = size // 16
    nodes = [
        helper.make_node("Transpose", ["images"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["x"], ["y"], kernel_shape=[side, side], strides=[side, side]
        ),
        helper.make_node("Flatten", ["y"], ["z"], axis=1),
        helper.make_node("MatMul", ["z", "weights"], ["features"]),
    ]
    images = helper.make_tensor_value_info(
        "images", TensorProto.FLOAT, ["N", size, size, 3]
    )
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", dim])
    initial = [numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph(nodes, "wide", [images], [features], initial)
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def memory(root: int) -> int:
    """Bytes of a process and its descendants, each page once, and of frames on their way."""
    total = 0
    for file in Path("/dev/shm").glob(f"vd-*-{root}-*/*"):
        with contextlib.suppress(FileNotFoundError):  # collected meanwhile
            total += file.stat().st_size
    for pid in family(root):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended meanwhile
            continue
        total += sum(1024 * int(x.split()[1]) for x in rollup if x.startswith("Pss:"))
    return total


def family(root: int) -> set[int]:
    """A process and its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                status = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2]
            except OSError:
                continue
            parents[int(entry)] = int(status.split()[1])
    found = {root}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found


if __name__ == "__main__":
    tyro.cli(main)
