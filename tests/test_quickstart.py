"""The quickstart as a newcomer runs it; with shuffled labels it must know nothing."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import vd
from vd.files import read_csv, write_csv

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TRAINING = (
    "--no-mixed-precision --epochs 20 --batch-size 32 --focal-alpha 0.5 "
    "--early-stopping-patience 5"
).split()


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    script = ROOT / "experiments" / "quickstart.py"
    subprocess.run([sys.executable, str(script)], cwd=folder, check=True)
    return folder / "runs" / "quickstart"


def test_it_learns_motion(quickstart):
    result = json.loads((quickstart / "run" / "evaluation_test.json").read_text())
    assert result["n"] == 48
    assert result["accuracy"] > 0.9
    assert not result["collapsed"]
    for picture in ("curves", "confusion", "roc", "reliability", "timeline"):
        assert (quickstart / "run" / f"{picture}.png").stat().st_size > 5000


def test_with_shuffled_labels_it_falls_to_chance(quickstart, tmp_path):
    rows = read_csv(quickstart / "run" / "splits.csv")
    generator = random.Random(0)
    table = []
    for split in ("train", "val", "test"):
        part = [row for row in rows if row["split"] == split]
        labels = [row["label"] for row in part]
        generator.shuffle(labels)
        for row, label in zip(part, labels, strict=True):
            path = str(quickstart / "clips" / row["path"])
            table.append({"path": path, "label": label, "split": split})
    write_csv(tmp_path / "shuffled.csv", table)
    vd(
        "train", "--dataset-path", tmp_path / "shuffled.csv", "--cache-dir",
        quickstart / "cache", "--checkpoint-dir", tmp_path / "run", *TRAINING,
    )  # fmt: skip
    result = json.loads((tmp_path / "run" / "evaluation_test.json").read_text())
    assert 0.3 < result["accuracy"] < 0.7  # 48 clips: just under three deviations
