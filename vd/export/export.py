"""`vd export`: the files of a run for other runtimes, and what they differ from `vd` by."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from vd.console import say, say_limits
from vd.errors import VdError
from vd.evaluation.restore import Restored, check_features, moved, restore
from vd.export import example
from vd.export.detector_onnx import head_model
from vd.export.joined_onnx import backbone_model, joined_model
from vd.export.parity import (
    LIMIT,
    TestClip,
    head_parity,
    read_test_clips,
    whole_way_parity,
)
from vd.features.backbone import Backbone, find_backbone
from vd.features.engines import runs_in_jax
from vd.files import read_csv, write_bytes, write_json, write_text
from vd.models.detector import Detector

Format = Literal["onnx", "stablehlo"]


def export(
    run_dir: Path, form: Format, out: Path, dataset_path: Path | None = None
) -> dict[str, Any]:
    """Write a finished run into `out` for other runtimes; returns the content of parity.json.

    `dataset_path` is where the run's data set has moved. Raises `VdError` for what the
    format cannot hold.
    """
    if (out / "config.json").exists():
        raise VdError(f"--out {out} is a run folder; name another folder.")
    restored = restore(run_dir)
    config = moved(restored.config, run_dir, dataset_path, None)
    backbone = find_backbone(config.backbone)
    check_features(backbone, run_dir)
    clips = read_test_clips(run_dir, config, backbone)
    write = _write_onnx if form == "onnx" else _write_stablehlo
    parity = write(restored, backbone, clips, out)
    write_json(out / "parity.json", parity)
    say_limits(_limits(parity, run_dir))
    return parity


def metadata(restored: Restored, backbone: Backbone) -> dict[str, str]:
    """What an ONNX model says of itself: how to feed it, and how to read its result."""
    frames = backbone.frames
    calibration = {
        name: value
        for name, value in vars(restored.calibration).items()
        if isinstance(value, float)
    }
    values = {
        **calibration,  # threshold, temperature, …
        "clip_frames": restored.config.model.clip_frames,
        "frames_per_second": frames.frames_per_second,
        "motion_gap_seconds": frames.motion_gap_seconds,
        "size": backbone.size,
        "streams": ",".join(backbone.streams),
    }
    return {name: str(value) for name, value in values.items()}


def _write_onnx(
    restored: Restored, backbone: Backbone, clips: Sequence[TestClip], out: Path
) -> dict[str, Any]:
    """backbone.onnx, head.onnx, model.onnx and example.py; returns the parity."""
    head, config = restored.head, restored.config.model
    if type(head) is not Detector:
        raise VdError(
            f"--format onnx holds the head of vd, and the run was trained with "
            f"{type(head).__name__}; give --format stablehlo."
        )
    if unknown := set(backbone.streams) - set(example.STREAMS):
        raise VdError(
            f"--format onnx: example.py cannot make the stream {min(unknown)}; give "
            "--format stablehlo."
        )
    facts = metadata(restored, backbone)
    network = backbone_model(backbone, restored.dim // backbone.vectors)
    temperature = restored.calibration.temperature
    of_head = config, restored.params, restored.dim, temperature, facts
    models = {
        "backbone": network,
        "head": head_model(*of_head),
        "model": joined_model(backbone, network, *of_head),
    }
    for name, model in models.items():
        write_bytes(out / f"{name}.onnx", model.SerializeToString())
    write_text(out / "example.py", Path(example.__file__).read_text())
    say(f"written: {', '.join(f'{name}.onnx' for name in models)}, example.py in {out}")
    session = onnxruntime.InferenceSession(
        models["head"].SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def logits(windows: Sequence[np.ndarray]) -> np.ndarray:
        inputs = [
            {
                "features": window[None].astype(np.float32),
                "length": np.array([len(window)]),
            }
            for window in windows
        ]
        return np.concatenate([session.run(["logit"], one)[0] for one in inputs])

    return {
        "format": "onnx",
        "head": head_parity(restored, clips, logits),
        "whole_way": whole_way_parity(restored, clips, out / "example.py"),
    }


def _write_stablehlo(
    restored: Restored, backbone: Backbone, clips: Sequence[TestClip], out: Path
) -> dict[str, Any]:
    """The head, and the backbone as far as JAX can run it; returns the parity."""
    from vd.export.stablehlo import head_function, write_backbone, write_head

    write_head(restored, out)
    if runs_in_jax(backbone):
        write_backbone(backbone, out)
    else:
        network = backbone_model(backbone, restored.dim // backbone.vectors)
        write_bytes(out / "backbone.onnx", network.SerializeToString())
        say(
            f"note: JAX does not run {backbone.name}, so it is written as backbone.onnx"
        )
    logits = head_function(out, restored.config.model.clip_frames)
    return {"format": "stablehlo", "head": head_parity(restored, clips, logits)}


def _limits(parity: dict[str, Any], run_dir: Path) -> list[str]:
    """What a person should know before using the export."""
    whole, limits = parity.get("whole_way"), []
    if parity["head"]["features"] == "random":
        splits = {row["split"] for row in read_csv(run_dir / "splits.csv")}
        none, remedy = "the run has no test clips", ""
        if "test" in splits:
            none = "no test clip of the run was found"
            remedy = "; name the data set's place with --dataset-path"
        limits.append(
            f"{none}, so the head was compared on random features and the whole way was not "
            f"measured{remedy}"
        )
    if whole and (whole["largest_probability_difference"] or 0) > LIMIT:
        limits.append(
            f"from a video file on, a probability differs by "
            f"{whole['largest_probability_difference']:.3f} from that of vd, more than "
            f"{LIMIT}; parity.json lists the clips"
        )
    return limits
