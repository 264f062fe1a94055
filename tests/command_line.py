"""The command line, run in processes of its own."""

import hashlib
import subprocess
import sys

VD = [sys.executable, "-m", "vd.cli"]
SMALL = "--epochs 3 --batch-size 8 --warmup-epochs 1 --projection-size 16 --hidden-size 8".split()


def vd(*arguments, code=0, **settings):
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [*VD, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def train(clips, backbone, folder, *extra, code=0):
    return vd(
        "train", "--dataset-path", clips, "--cache-dir", folder / "cache", "--checkpoint-dir",
        folder / "run", "--backbone", backbone, "--no-mixed-precision",
        "--feature-preset", "best", *SMALL, *extra, code=code,
    )  # fmt: skip


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
