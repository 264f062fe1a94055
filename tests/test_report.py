"""Reports: what they show is what the files say, for people and hostile names."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.command_line import digests, train, vd
from vd.errors import VdError
from vd.files import read_csv, write_csv
from vd.metrics.binary import point_metrics
from vd.report.report import report
from vd.training.log import read_metrics

KEPT = Path(__file__).parent / "kept_run"
CLIPS = KEPT / "clips"


class Page(HTMLParser):
    """The rows of a page's tables, its links, pictures and words."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.words, self.images = [], [], "", []
        self.feed(re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given[key] for key in ("src", "href") if key in given]
        if tag == "img":
            self.images.append(given)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.words += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def row(self, name):
        (row,) = (row for row in self.rows if row and row[0].strip() == name)
        return [cell.strip() for cell in row]


def page_of(folder, mistakes=0, **more):
    out = folder.with_name("page.html")
    return report(folder, out, mistakes, **more).read_text()


def change(path, **values):
    """Other values in a JSON file; None removes the key."""
    record = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))


def percent(value):
    return f"{100 * value:.1f} %"


@pytest.fixture
def run(tmp_path):
    run = shutil.copytree(KEPT / "run", tmp_path / "run")
    for name in ("curves", "confusion", "roc", "reliability"):
        (run / f"{name}.png").write_bytes(name.encode())
    return run


@pytest.fixture
def all_wrong(run):
    """A run whose test predictions are all wrong, the first clip most."""
    rows = read_csv(run / "predictions_test.csv")
    for i, row in enumerate(rows):
        p = 0.001 * (1 + i)
        row["probability"] = p if row["label"] == "violent" else 1 - p
    write_csv(run / "predictions_test.csv", rows)
    labels = np.array([int(row["label"] == "violent") for row in rows])
    p = np.array([float(row["probability"]) for row in rows])
    metrics = point_metrics(labels, p, p > 0.5)
    change(
        run / "evaluation_test.json", **metrics, accuracy_ci95=[0, 0.3], collapsed=True
    )
    return run


def test_figures_are_those_of_the_files(run):
    page = Page(page_of(run))
    test, val = (
        json.loads((run / f"evaluation_{name}.json").read_text())
        for name in ("test", "val")
    )
    low, high = test["accuracy_ci95"]
    between = f"{100 * low:.1f} to {100 * high:.1f} %"
    assert page.row("accuracy")[1:3] == [percent(test["accuracy"]), between]
    assert page.row("recall violent")[3] == percent(val["recall_violent"])
    assert page.row("ROC AUC")[1::2] == [f"{one['roc_auc']:.3f}" for one in (test, val)]
    assert page.row("Brier score (0 is best)")[1] == f"{test['brier']:.3f}"
    assert f"threshold {test['threshold']:.3f}" in page.words
    assert "adds frames of each clip" in page.words
    point = test["operating_points"]["best_balanced_accuracy"]
    assert page.row("best balanced accuracy")[1:3] == [
        f"{point['threshold']:.3f}",
        percent(point["recall_violent"]),
    ]
    for warning in test["warnings"]:
        assert warning in page.words
    ledger = json.loads((run / "config.json").read_text())["ledger"]
    assert page.row("--focal-alpha")[1:] == ["0.5", "0.25"]
    first = ledger["per_split_and_class"][0]
    assert [first["split"], first["class"], str(first["found"])] in [
        row[:3] for row in page.rows
    ]
    rows = read_metrics(run)
    best = min(rows, key=lambda row: row["val_loss"])["epoch"]
    ended = f"of epoch {best}, the best by val_loss; training ended after {len(rows)}"
    assert ended in page.words
    shown = [base64.b64decode(x["src"].partition(",")[2]) for x in page.images]
    assert shown == [b"curves", b"confusion", b"roc", b"reliability"]


def test_a_missing_and_an_undefined_figure_are_dashes_and_an_unknown_one_no_harm(run):
    path = run / "evaluation_val.json"
    change(path, f1_violent=None, roc_auc_ci95=None, collapsed=None, new=3)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"brier": None}))
    change(run / "evaluation_test.json", operating_points=None, slices=None)
    (run / "roc.png").unlink()
    page = Page(page_of(run))
    auc = json.loads(path.read_text())["roc_auc"]
    assert page.row("ROC AUC")[3:] == [f"{auc:.3f}", "–"]
    assert page.row("F1 violent")[3] == "–"
    assert page.row("Brier score (0 is best)")[3] == "–"
    assert page.row("collapsed to one class")[1::2] == ["no", "–"]
    assert len(page.images) == 3


def test_mistakes_are_those_of_the_predictions_the_worst_first(run):
    threshold = json.loads((run / "evaluation_test.json").read_text())["threshold"]
    wrong = [
        (abs(float(row["probability"]) - (row["label"] == "violent")), row["path"])
        for row in read_csv(run / "predictions_test.csv")
        if (float(row["probability"]) >= threshold) != (row["label"] == "violent")
    ]
    names = re.findall(r"<h3>(.*\.mp4)</h3>", page_of(run))
    assert names == [path for _, path in sorted(wrong, reverse=True)]
    assert names


def test_what_limits_the_figures_is_said_first(all_wrong):
    ledger = json.loads((all_wrong / "config.json").read_text())["ledger"]
    ledger["loss_gap"] = {
        "lost_violent": 0.6, "lost_nonviolent": 0.1, "gap": 0.5, "p": 0.0001,
    }  # fmt: skip
    change(all_wrong / "config.json", ledger=ledger)
    rows = (all_wrong / "metrics.jsonl").read_text().splitlines(keepends=True)
    (all_wrong / "metrics.jsonl").write_text("".join(rows[:23]))
    words = Page(page_of(all_wrong)).words
    limits = words[words.index("Before you trust this") : words.index("Figures")]
    sentences = [line for line in limits.splitlines()[1:] if line]
    assert sentences[0].startswith("CLASS COLLAPSE: nearly all")
    assert "not shown to be above 50.0 %" in sentences[1]
    assert sentences[2].startswith("LOSS GAP: 60.0 % of the violent")
    assert "more --epochs may give more" in sentences[-1]


def test_the_page_holds_all_that_it_shows_and_needs_no_network(all_wrong):
    text = page_of(all_wrong, 2, dataset_path=CLIPS)
    page = Page(text)
    assert not [x for x in page.links if not x.startswith(("data:", "#"))]
    assert not re.search(r"@import|url\(|<script|<iframe|<object", text)
    ids = set(re.findall(r'id="(\w+)"', text))
    assert {x[1:] for x in page.links if x.startswith("#")} <= ids
    assert all(image["alt"] for image in page.images)
    assert str(KEPT.parent) not in text  # nothing of this machine


def test_hostile_names_are_escaped(all_wrong):
    hostile = "test/violent/<script>alert(1)</script>\"'&.mp4"
    name = read_csv(all_wrong / "predictions_test.csv")[0]["path"]
    for table in ("predictions_test.csv", "splits.csv"):
        rows = read_csv(all_wrong / table)
        for row in rows:
            row["path"] = hostile if row["path"] == name else row["path"]
        write_csv(all_wrong / table, rows)
    folder = all_wrong.rename(all_wrong.with_name("run<script>alert(1)"))
    for mistakes in (0, 3):
        text = page_of(folder, mistakes)
        assert "<script" not in text
        assert hostile in Page(text).words


def test_frames_are_shown_while_the_videos_are_there(all_wrong, tmp_path):
    names = [row["path"] for row in read_csv(all_wrong / "predictions_test.csv")]
    moved = shutil.copytree(CLIPS, tmp_path / "moved")
    (moved / names[0]).unlink()
    (moved / names[1]).write_bytes(b"another")
    page = Page(page_of(all_wrong, 4, dataset_path=moved))
    strips = [x for x in page.images if x["alt"].startswith("Eight frames")]
    assert [x["alt"] for x in strips] == [
        f"Eight frames of {name}, in order" for name in names[2:4]
    ]
    content = base64.b64decode(strips[0]["src"].partition(",")[2])
    strip = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert strip.shape[0] == 2 * (84 + 2)
    frames = np.split(strip[:86], 4, axis=1)
    assert any((frames[0] != other).any() for other in frames[1:])  # it moves
    assert page.words.count("No frames: the video is gone") == 2


@pytest.mark.slow
def test_training_leaves_the_quick_page(trained, clips, backbone, tmp_path):
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    (tmp_path / "cache").symlink_to(trained[0] / "cache")
    (tmp_path / "run" / "report.html").unlink()  # killed just before it
    train(clips, backbone, tmp_path)
    again = digests(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
    train(clips, backbone, tmp_path)
    assert digests(tmp_path / "run") == again


def test_wrong_files_and_flags_are_one_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    done = vd("report", tmp_path / "empty", code=2)
    assert "holds neither config.json nor" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "empty").iterdir())
    for out in (tmp_path, run / "config.json"):
        with pytest.raises(VdError, match=r"must end in \.html"):
            report(run, out)
    with pytest.raises(VdError, match="--dataset-path gone does not exist"):
        report(run, dataset_path=Path("gone"))
    (run / "evaluation_test.json").rename(run / "evaluation_rwf.json")
    done = vd("report", run, code=2)
    assert "not evaluated on test clips of its own" in done.stderr
    assert "or read what vd evaluate --on wrote" in done.stderr
    (run / "evaluation_rwf.json").rename(run / "evaluation_test.json")
    (run / "evaluation_val.json").write_text("{")
    with pytest.raises(VdError, match=r"^[^\n]*evaluation_val.json is damaged[^\n]*$"):
        report(run)
