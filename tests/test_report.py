"""Reports: what they say is what the files say, for people, browsers and hostile names."""

import base64
import html
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import tyro

from tests.command_line import SMALL, digests, train, vd
from vd.cli import Train
from vd.config import to_json
from vd.errors import VdError
from vd.evaluation.operating_points import operating_points
from vd.evaluation.predictions import cluster_names
from vd.evaluation.restore import read_calibration
from vd.files import read_csv, write_csv
from vd.metrics.binary import METRICS, evaluation_metrics
from vd.report.report import report
from vd.report.words import beats_majority, loss

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --v=0"
).split()


class Page(HTMLParser):
    """Rows of tables as (texts, exact values) of their cells, links, and all words."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.words, self.images = [], [], "", []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given[key] for key in ("src", "href") if key in given]
        if tag == "img":
            self.images.append(given)
        if tag == "tr":
            self.rows.append(([], []))
        elif tag in ("td", "th"):
            self.rows[-1][0].append("")
        elif tag == "data":
            self.rows and self.rows[-1][1].append(float(given["value"]))
        self._in_style = tag == "style"

    def handle_data(self, data):
        if self._in_style:
            return
        self.words += data
        if self.rows and self.rows[-1][0]:
            self.rows[-1][0][-1] += data

    def row(self, name):
        (found,) = (row for row in self.rows if row[0] and row[0][0].strip() == name)
        return found


class Edit(NamedTuple):
    """Another value in a JSON file."""

    key: str
    value: object


def said(folder, tmp_path, mistakes=0, **more):
    """The page of a folder."""
    return report([folder], tmp_path / "page.html", mistakes, **more).read_text()


def all_wrong(run, to):
    """A copy of a run whose test predictions are all wrong, the first clip most."""
    shutil.copytree(run, to)
    rows = read_csv(to / "predictions_test.csv")
    for i, row in enumerate(rows):
        p = 0.001 * (1 + i)
        row["probability"] = p if row["label"] == "violent" else 1 - p
    write_csv(to / "predictions_test.csv", rows)
    assert told_again(to)["accuracy"] == 0
    return to


def told_again(folder):
    """Write what the test predictions give now into the evaluation beside them."""
    path = folder / "evaluation_test.json"
    told = json.loads(path.read_text())
    rows = read_csv(folder / "predictions_test.csv")
    content = {row["path"]: row["id"] for row in read_csv(folder / "splits.csv")}
    paths = [row["path"] for row in rows]
    clusters = cluster_names(
        paths, [row["group"] for row in rows], [content[p] for p in paths]
    )
    arrays = (
        np.array([int(row["label"] == "violent") for row in rows]),
        np.array([float(row["probability"]) for row in rows]),
        clusters,
    )
    seconds = np.ones(len(rows))
    points = operating_points(*arrays, seconds, read_calibration(folder))
    told |= evaluation_metrics(*arrays, told["threshold"])
    path.write_text(json.dumps(told | {"operating_points": points}))
    return told


@pytest.fixture(scope="module")
def run(trained):
    return trained[0] / "run"


@pytest.fixture(scope="module")
def crossval(tmp_path_factory, clips, backbone):
    folder = tmp_path_factory.mktemp("crossval")
    vd(
        "crossval", "--dataset-path", clips, "--cache-dir", folder / "cache",
        "--checkpoint-dir", folder / "cv", "--backbone", backbone, "--no-mixed-precision",
        "--folds", 2, "--seeds", 0, 1, *SMALL,
    )  # fmt: skip
    return folder / "cv"


def test_figures_are_those_of_the_files(run, tmp_path):
    page = Page(said(run, tmp_path))
    told = [
        json.loads((run / f"evaluation_{name}.json").read_text())
        for name in ("test", "val")
    ]
    calibration = json.loads((run / "calibration.json").read_text())
    shown = {
        "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy",
        "recall_violent": "recall violent", "recall_nonviolent": "recall non-violent",
        "roc_auc": "ROC AUC", "average_precision": "average precision",
        "brier": "Brier score (0 is best)", "ece": "calibration error (0 is best)",
    }  # fmt: skip
    assert set(shown) <= set(METRICS)
    for key, name in shown.items():
        _, values = page.row(name)
        assert values == [one[key] for one in told if one[key] is not None]
    low, high = told[0]["accuracy_ci95"]
    between = f"{100 * low:.1f} to {100 * high:.1f} %"
    assert page.row("accuracy")[0][2] == between
    assert f"95 % interval {between}" in page.words
    assert f"right on {100 * told[0]['accuracy']:.1f} %" in page.words
    assert f"threshold {calibration['threshold']:.3f}" in page.words
    assert "no source groups known" in page.words.casefold()
    point = told[0]["operating_points"]["best_balanced_accuracy"]
    assert page.row("best balanced accuracy")[1][:2] == [
        point["threshold"],
        point["recall_violent"],
    ]
    ledger = json.loads((run / "config.json").read_text())["ledger"]
    counts = [
        [row[0][1], *row[0][2:6]]
        for row in page.rows
        if row[0][0] == "test" and "violent" in row[0][1]
    ]
    assert counts == [
        [row["class"], *(str(row[k]) for k in ("found", "used", "partial", "quarantined"))]
        for row in ledger["per_split_and_class"]
        if row["split"] == "test"
    ]  # fmt: skip
    epochs = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["val_loss"] for row in epochs]
    best = 1 + losses.index(min(losses))
    assert f"after 3 of at most 3 epochs; the figures are of epoch {best}" in page.words
    assert len(page.images) == 4 + 4  # curves, and the test part
    assert f"is off by {told[0]['ece_by_chance']:.3f} on so many clips" in page.words


def mistakes_of(run):
    """The rows of test clips that are judged wrong."""
    threshold = json.loads((run / "evaluation_test.json").read_text())["threshold"]
    return [
        row
        for row in read_csv(run / "predictions_test.csv")
        if (float(row["probability"]) >= threshold) != (row["label"] == "violent")
    ]


def test_mistakes_are_those_of_the_predictions_the_worst_first(run, tmp_path):
    wrong = mistakes_of(run)
    wrong.sort(key=lambda r: -abs(float(r["probability"]) - (r["label"] == "violent")))
    page = Page(said(run, tmp_path))
    shown = [(row[0][0], row[1][0]) for row in page.rows if row[0][0].endswith(".mp4")]
    assert shown == [(row["path"], float(row["probability"])) for row in wrong]


def test_what_is_undefined_is_said_and_never_zero(run, tmp_path):
    rows = read_csv(run / "predictions_test.csv")
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    write_csv(
        folder / "predictions_test.csv", [row | {"label": "violent"} for row in rows]
    )
    told_again(folder)
    page = Page(said(folder, tmp_path))
    texts, values = page.row("ROC AUC")
    assert texts[1:3] == ["undefined", "not known"]
    assert len(values) == 1  # of validation
    assert "ROC AUC undefined (not known)" in page.words
    assert "All clips are violent: a constant is always right" in page.words


def test_the_verdict_weighs_by_words():
    assert beats_majority(0.9, [0.8, 0.95], 10, 5).kind == ""
    assert beats_majority(0.9, None, 10, 5).text.startswith("There is no interval")
    assert beats_majority(0.9, [0.5, 0.95], 10, 5).kind == "Caution"
    assert "always saying non-violent would be right on 70.0 %" in (
        beats_majority(0.7, [0.6, 0.8], 10, 3).text
    )
    assert beats_majority(0.7, [0.6, 0.8], 10, 3).kind == "Warning"
    gap = {"lost_violent": 0.63, "lost_nonviolent": 0.17, "gap": 0.46, "p": 1e-9}
    made = loss({"ledger": {"loss_gap": gap}})
    assert made.kind == "Warning"
    assert "63.0 % of the violent and 17.0 % of the non-violent" in made.text


def test_collapse_and_loss_gap_are_loud(run, tmp_path):
    folder = all_wrong(run, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["ledger"]["loss_gap"] = {
        "lost_violent": 0.6, "lost_nonviolent": 0.1, "gap": 0.5, "p": 0.0001,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    words = Page(said(folder, tmp_path)).words
    assert "Warning: CLASS COLLAPSE" in words
    assert "Warning: LOSS GAP: 60.0 % of the violent" in words


def test_the_command_gives_the_same_settings(run, tmp_path):
    words = re.search("<pre>(.*?)</pre>", said(run, tmp_path), re.DOTALL)[1]
    command = shlex.split(html.unescape(words).replace("\\\n", ""))
    assert command[:2] == ["vd", "train"]
    made = tyro.cli(Train, args=command[2:], config=(tyro.conf.OmitArgPrefixes,))
    assert to_json(made) == json.loads((run / "config.json").read_text())["settings"]


@pytest.mark.slow
def test_it_holds_all_that_it_shows_and_tells_of_no_machine(run, tmp_path):
    text = said(all_wrong(run, tmp_path / "run"), tmp_path, 2)
    page = Page(text)
    assert not [x for x in page.links if not x.startswith(("data:", "#"))]
    assert not re.search(r"@import|url\(|<script|<iframe|<object", text)
    ids = set(re.findall(r'id="(\w+)"', text))
    assert {x[1:] for x in page.links if x.startswith("#")} <= ids
    given = json.loads((run / "config.json").read_text())["settings"]
    flags = {str(given["data"][k]) for k in ("dataset_path", "cache_dir")}
    flags |= {given["run"]["checkpoint_dir"], given["backbone"]["backbone"]}
    for flag in sorted(flags, key=len, reverse=True):
        text = text.replace(flag, "")
    assert not re.search(r"[\s\"'>](/(tmp|home|root|work|usr|var)/)", text)
    assert all(image["alt"] for image in page.images)


@pytest.mark.slow
def test_hostile_names_are_escaped(run, tmp_path):
    folder = all_wrong(run, tmp_path / "run<script>alert(1)")
    hostile = "test/violent/<script>alert(1)</script>\"'&.mp4"
    name = read_csv(folder / "predictions_test.csv")[0]["path"]
    for table in ("predictions_test.csv", "ledger.csv", "splits.csv"):
        rows = read_csv(folder / table)
        for row in rows:
            row["path"] = hostile if row["path"] == name else row["path"]
            row["outcome"] = "partial"
        if table != "ledger.csv":
            rows = [{k: v for k, v in row.items() if k != "outcome"} for row in rows]
        write_csv(folder / table, rows)
    told_again(folder)
    for mistakes in (0, 3):
        text = said(folder, tmp_path, mistakes)
        assert "<script" not in text
        assert html.escape(hostile, quote=False) in html.unescape(
            text.replace("&lt;", "&amp;lt;").replace("&gt;", "&amp;gt;").replace("&amp;.", "&amp;amp;.")
        )  # fmt: skip
        assert hostile in Page(text).words


@pytest.mark.slow
def test_frames_are_shown_while_the_videos_are_there(run, tmp_path):
    page = Page(said(all_wrong(run, tmp_path / "run"), tmp_path, 4))
    strips = [x for x in page.images if x["alt"].startswith("Eight frames")]
    scores = [x for x in page.images if x["alt"].startswith("Probability")]
    assert (len(strips), len(scores)) == (4, 3)
    content = base64.b64decode(strips[0]["src"].partition(",")[2])
    strip = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert strip.shape[0] == 2 * (84 + 2)
    frames = np.split(strip[:86], 4, axis=1)
    assert any((frames[0] != other).any() for other in frames[1:])  # it moves
    first = read_csv(run / "predictions_test.csv")[0]["path"]
    assert strips[0]["alt"] == f"Eight frames of {first}, in order"


@pytest.mark.slow
def test_videos_that_are_gone_changed_or_moved_are_said(run, clips, tmp_path):
    folder = all_wrong(run, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(clips, moved)
    names = [row["path"] for row in read_csv(folder / "predictions_test.csv")][:3]
    (moved / names[0]).unlink()
    (moved / names[1]).write_bytes(b"another")
    page = Page(said(folder, tmp_path, 3, dataset_path=moved))
    assert page.words.count("No frames: ") == 2
    assert "No frames: the video is not there any more" in page.words
    assert "No frames: the file is another one than was tested" in page.words
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["data"]["dataset_path"] = str(tmp_path / "nowhere")
    (folder / "config.json").write_text(json.dumps(config))
    page = Page(said(folder, tmp_path, 3))
    assert page.words.count("the video is not there any more") == 3
    with pytest.raises(VdError, match=r"--dataset-path .*gone does not exist"):
        said(folder, tmp_path, 3, dataset_path=tmp_path / "gone")


@pytest.mark.slow
def test_training_leaves_the_quick_form(trained, run, clips, backbone, tmp_path):
    page = (run / "report.html").read_bytes()
    assert said(run, tmp_path).encode() == page
    wrong = mistakes_of(run)
    assert (b"adds frames of each clip" in page) == bool(wrong)
    assert (b"None: every clip" in page) == (not wrong)
    assert b"Eight frames of" not in page
    folder = tmp_path / "cut"
    folder.mkdir()
    shutil.copytree(run, folder / "run")
    (folder / "cache").symlink_to(trained[0] / "cache")
    (folder / "run" / "report.html").unlink()  # killed just before it
    train(clips, backbone, folder)
    again = digests(folder / "run")
    assert (folder / "run" / "report.html").exists()
    train(clips, backbone, folder)
    assert digests(folder / "run") == again


@pytest.mark.slow
def test_a_cross_validation_has_a_page(crossval, tmp_path):
    vd("report", crossval, "--mistakes", "2")
    page = Page((crossval / "report.html").read_text())
    told = json.loads((crossval / "crossval.json").read_text())
    of = told["over_seeds"]["accuracy"]
    assert page.row("accuracy")[1][0] == of["mean"]
    members = [row for row in page.rows if row[0][0].startswith("fold-")]
    assert [row[0][0] for row in members] == [r["member"] for r in told["per_fold"]]
    assert [row[1][1] for row in members] == [r["accuracy"] for r in told["per_fold"]]
    assert f"{100 * of['mean']:.1f} % are judged right" in page.words
    by = r"scored one by one by fold-\d_seed-\d, at its threshold 0\.\d{3};"
    assert re.search(by, page.words)
    assert "vd crossval" in page.words
    assert "--folds 2 --seeds 0 1" in page.words
    member = Page(said(crossval / "fold-0_seed-0", tmp_path))
    assert "one fold of a cross-validation" in member.words


@pytest.mark.slow
def test_a_comparison_has_a_page_and_needs_a_name(run, tmp_path):
    other = all_wrong(run, tmp_path / "b$x_{$<i>")
    done = vd("report", run, other, code=2)
    assert "name a file by --out" in done.stderr
    out = tmp_path / "compare.html"
    vd("report", run, other, "--out", out)
    page = Page(out.read_text())
    printed = vd("compare", run, other, "--out", tmp_path / "c").stderr
    told = json.loads((tmp_path / "c" / "compare.json").read_text())["comparisons"][0]
    for key, row in (("b", other.name), ("a", "run"), ("difference", "difference")):
        figures = [told[f"{name}_{key}"] for name in ("accuracy", "roc_auc")]
        assert page.row(row)[1] == figures
    lost = f"{100 * told['accuracy_difference']:.1f} points"
    assert lost.replace("-", "−") in page.words
    assert lost.startswith("-")
    sentence = told["sentences"][0]
    assert sentence in page.words
    assert sentence in printed
    assert "have the same settings" in page.words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json is damaged"),
        ("evaluation_test.json", None, "is not evaluated; run its training command"),
        ("evaluation_test.json", "{", "evaluation_test.json is damaged"),
        ("evaluation_test.json", '{"threshold": 0.5}', "evaluation_test.json is damaged"),
        ("evaluation_test.json", Edit("accuracy", "abc"), "says accuracy 'abc' where"),
        ("evaluation_test.json", Edit("roc_auc", 0.99), "says ROC AUC 0.99 where"),
        ("evaluation_test.json", Edit("slices", 3), "evaluation_test.json is damaged"),
        ("evaluation_test.json", Edit("n_violent", 5), "its n_violent are not those of"),
        ("evaluation_test.json", Edit("accuracy_ci95", [0.8, 0.9]), "its accuracy_ci95 are not"),
        ("evaluation_test.json", Edit("warnings", []), "it lacks a warning"),
        ("evaluation_val.json", Edit("collapsed", None), "its collapsed are not those of"),
        ("evaluation_val.json", "[]", "evaluation_val.json is damaged"),
        ("calibration.json", None, "training has not ended"),
        ("calibration.json", "{}", "calibration.json is damaged"),
        ("metrics.jsonl", '{"epoch": 1}\n', "metrics.jsonl is damaged"),
        ("metrics.jsonl", "[1]\n", "metrics.jsonl is damaged"),
        ("metrics.jsonl", None, "metrics.jsonl is damaged"),
        ("ledger.csv", "path\nx\n", "ledger.csv is damaged"),
        ("splits.csv", "", "splits.csv is missing, damaged or changed"),
        ("predictions_test.csv", "path,label\na,violent\n", "damaged (it lacks 'group')"),
        ("predictions_test.csv", "path,group,label\na,,fight\n", "damaged ('fight' is no class)"),
        (
            "predictions_test.csv", "path,group,label,probability\na,,violent,x\n",
            "damaged ('x' is no probability)",
        ),
    ],
)  # fmt: skip
def test_what_lacks_or_is_damaged_is_one_sentence(
    run, tmp_path, file, content, message
):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    if isinstance(content, Edit):
        told = json.loads((folder / file).read_text())
        content = json.dumps(told | {content.key: content.value})
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    before = digests(folder)
    with pytest.raises(VdError) as raised:
        report([folder], mistakes=0)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert digests(folder) == before


@pytest.mark.slow
def test_changed_operating_points_have_no_page(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "evaluation_test.json"
    told = json.loads(path.read_text())
    for point in told["operating_points"].values():
        point["false_alarm_share"] = 0.123
    path.write_text(json.dumps(told))
    with pytest.raises(VdError, match="its operating_points are not those of"):
        report([tmp_path / "run"], mistakes=0)


@pytest.mark.slow
def test_a_changed_crossval_has_no_page(crossval, tmp_path):
    shutil.copytree(crossval, tmp_path / "cv")
    (tmp_path / "cv" / "report.html").unlink(missing_ok=True)
    path = tmp_path / "cv" / "crossval.json"
    told = json.loads(path.read_text())
    folds = told["over_folds"] | {
        "accuracy": told["over_folds"]["accuracy"] | {"min": 0.9}
    }
    for key, value in (
        ("n", 360), ("over_folds", folds), ("warnings", []), ("seeds", [0, 7]),
    ):  # fmt: skip
        path.write_text(json.dumps(told | {key: value}))
        with pytest.raises(VdError, match=f"another {key} than predictions.csv gives"):
            report([tmp_path / "cv"], mistakes=0)
    members = [told["per_fold"][0] | {"n_train": 2000}, *told["per_fold"][1:]]
    path.write_text(json.dumps(told | {"per_fold": members}))
    with pytest.raises(VdError, match="fold-0_seed-0 was trained on"):
        report([tmp_path / "cv"], mistakes=0)
    assert not (tmp_path / "cv" / "report.html").exists()


@pytest.mark.slow
def test_wrong_folders_and_flags_are_one_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    done = vd("report", tmp_path / "empty", code=2)
    assert "no folder of a run or a cross-validation" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "empty").iterdir())
    for arguments, words in (
        (([run], tmp_path), "is a folder"),
        (([run], run / "config.json"), r"let its name end in \.html"),
        (([run], None, -1), "--mistakes is -1"),
        (([],), "was given no folder"),
    ):
        with pytest.raises(VdError, match=words):
            report(*arguments)


MEASURE = """<body style="margin:0"><iframe id="f" style="width:390px;height:6000px;border:0"
 srcdoc="{page}"></iframe><pre id="result"></pre><script>
document.getElementById("f").onload = function () {{
  const doc = this.contentDocument, wide = [], over = [];
  doc.querySelectorAll("details").forEach(d => d.open = true);
  const box = e => e.getBoundingClientRect();
  for (const e of doc.querySelectorAll("body *"))
    if (!e.parentElement.closest(".wide") && (box(e).right > doc.documentElement.clientWidth + 0.5 || box(e).left < -0.5))
      wide.push(e.tagName + " " + box(e).right);
  for (const of of doc.querySelectorAll("body, .mistake, .shown, .pictures, ul")) {{
    const parts = [...of.children].filter(e => box(e).height > 0);
    parts.forEach((a, i) => parts.slice(i + 1).forEach(b => {{
      const x = Math.min(box(a).right, box(b).right) - Math.max(box(a).left, box(b).left);
      const y = Math.min(box(a).bottom, box(b).bottom) - Math.max(box(a).top, box(b).top);
      if (x > 1 && y > 1) over.push(a.tagName + " " + b.tagName);
    }}));
  }}
  const broken = [...doc.images].filter(i => !i.complete || !i.naturalWidth).length;
  document.getElementById("result").textContent = JSON.stringify(
    {{wide, over, broken, images: doc.images.length, scroll: doc.documentElement.scrollWidth}});
}};</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Debian's chromium")
def test_a_browser_shows_it_on_a_phone(run, crossval, tmp_path):
    wrong = all_wrong(run, tmp_path / "b")
    pages = {
        "run": report([wrong], tmp_path / "run.html", 3),
        "quick": report([run], tmp_path / "quick.html", 0),
        "crossval": report([crossval], tmp_path / "cv.html", 1),
        "compare": report([run, wrong], tmp_path / "compare.html"),
    }
    for name, path in pages.items():
        wrapper = tmp_path / f"{name}-phone.html"
        text = MEASURE.format(page=html.escape(path.read_text()))
        wrapper.write_text('<meta charset="utf-8">' + text)
        profile = f"--user-data-dir={tmp_path / name}"
        done = subprocess.run(
            [CHROMIUM, *FLAGS, profile, "--virtual-time-budget=5000", "--dump-dom",
             wrapper.as_uri()],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout)[1]
        result = json.loads(html.unescape(found))
        assert result.pop("images") >= 3, name
        assert result.pop("scroll") <= 390, name
        assert result == {"wide": [], "over": [], "broken": 0}, name
        assert "CONSOLE" not in done.stderr, name
