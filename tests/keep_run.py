"""Write tests/kept_run/run again, after features or runs have got another format.

    python -m tests.keep_run SCRATCH

A training on clips as those of `benchmarks.golden`, with its stand-in for a backbone. Two of
the kept test clips have each other's class, so that no figure is perfect. SCRATCH is a new
folder whose name tells nothing, such as /data: config.json and checkpoints name it.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from benchmarks import golden
from benchmarks.long_video import write_stand_in
from tests.command_line import VD

KEPT = Path(__file__).parent / "kept_run"
SETTINGS = (
    "--feature-preset best --epochs 16 --batch-size 8 --learning-rate 0.01 --devices 1 "
    "--warmup-epochs 1 --focal-alpha 0.5 --projection-size 16 --hidden-size 8 "
    "--no-mixed-precision"
).split()
LEFT_OUT = "*.png", "report.html", "events.*", ".lock*"


def main(scratch: Path) -> None:
    """Train in `scratch`, and copy the run without pictures, page and event file."""
    with patch.dict(golden.CLIPS, {"train": 32, "val": 8}):
        clips = golden.render_clips(scratch / "clips")
    kept = KEPT / "clips" / "test"
    shutil.rmtree(clips / "test")
    shutil.copytree(kept, clips / "test")
    write_stand_in(scratch / "tiny.onnx", size=32, dim=8)
    where = "--dataset-path clips --cache-dir cache --checkpoint-dir run".split()
    command = [*VD, "train", *where, "--backbone", "tiny.onnx", *SETTINGS]
    subprocess.run(command, cwd=scratch, check=True)
    shutil.rmtree(KEPT / "run", ignore_errors=True)
    ignored = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(scratch / "run", KEPT / "run", ignore=ignored)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
