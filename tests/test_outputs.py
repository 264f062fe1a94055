"""What --out holds: tables, JSON of ActivityNet and FiftyOne, subtitles, a picture and a page."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.broken import noisy_frames, render
from vd import plots
from vd.config import OutputConfig
from vd.data.outcome import Outcome
from vd.files import read_csv
from vd.predict.hysteresis import Event, EventRules
from vd.predict.outputs import outputs, subtitles
from vd.predict.recording import Prediction, Timeline

RULES = EventRules(0.6, 0.4, 0.5)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# clicks the first event, then the middle of the curve, and leaves what that did in the title
CLICKS = """<script>
const wait = () => new Promise(done => setTimeout(done, 500));
video.muted = true;
video.addEventListener("loadeddata", async () => {
  const found = [video.duration];
  document.querySelector("button[data-seconds]").click();
  await wait();
  found.push(video.currentTime, document.querySelectorAll("tr.now").length);
  video.pause();
  const box = curve.getBoundingClientRect();
  curve.dispatchEvent(new MouseEvent("click", {clientX: box.left + box.width / 2}));
  await wait();
  found.push(video.currentTime, Number(now.getAttribute("x1")));
  document.title = JSON.stringify(found);
}, {once: true});
</script>"""
EVENTS = (
    Event(1, 1.25, 2.75, 0.9, 2.0, 0.75, 2.5),
    Event(2, 3661.5, 3670.25, 0.8, 3665.0, 0.7, 3663.0),
)


@pytest.fixture(autouse=True)
def videos(tmp_path, monkeypatch):
    """Files of these names in the current folder."""
    render(tmp_path / "a.mp4", noisy_frames(50))
    for name in ("a-2.mp4", "b.mkv", "x/a.mp4", "y/a.mp4", "videos/a <b> &.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "a.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)


def prediction(name="a.mp4", events=EVENTS, span=4000.0, gaps=((1.6, 0.2),)):
    timeline = Timeline(np.array([1.0, 1.5, 2.0]), np.array([0.1, 0.7, 0.9]))
    outcome = Outcome("used", width=64, height=48, span=span, duration=span - 10)
    return Prediction(
        Path(name), outcome, 0.5, "violent", span - 10, 0.9, 2.0, events, gaps, timeline
    )


def write(folder, *names, config=None, **values):
    with outputs(config or OutputConfig(folder), names, RULES) as written:
        for name in names:
            written.add(name, prediction(name, **values))


def test_one_file_has_everything_in_the_folder(tmp_path):
    write(tmp_path / "out", "a.mp4")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "event-1.jpg", "event-2.jpg", "events.csv", "events.json", "events.vtt",
        "index.html", "timeline.csv", "timeline.png", "videos.json",
    ]  # fmt: skip
    first, second = read_csv(tmp_path / "out" / "events.csv")
    assert first == {
        "path": "a.mp4", "id": "1", "start": "1.25", "end": "2.75", "peak": "0.9",
        "peak_time": "2.0", "mean": "0.75", "alarm_time": "2.5",
    }  # fmt: skip
    assert second["start"] == "3661.5"
    rows = read_csv(tmp_path / "out" / "timeline.csv")
    assert rows[1] == {"path": "a.mp4", "seconds": "1.5", "probability": "0.7"}
    content = json.loads((tmp_path / "out" / "events.json").read_text())
    entry = content["database"]["a.mp4"]
    assert entry["duration"] == 4000.0
    assert entry["annotations"][0] == {
        "segment": [1.25, 2.75], "label": "violence", "score": 0.9,
    }  # fmt: skip
    assert "violence" in [node["nodeName"] for node in content["taxonomy"]]


def test_what_an_earlier_run_wrote_of_a_file_is_removed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("event-2.mp4", "notes.txt"):  # before vd came: not its own
        (out / name).write_text("mine")
        os.utime(out / name, (1, 1))
    config = OutputConfig(out, clips=True, annotate=True)
    write(out, "a.mp4", config=config, events=EVENTS[:1])
    pictures = {"event-1.jpg", "event-1.mp4", "annotated.mp4"}
    assert pictures < set(os.listdir(out))
    write(out, "a.mp4", events=())
    assert not pictures & set(os.listdir(out))
    assert {"event-2.mp4", "notes.txt", "index.html", "events.csv"} < set(
        os.listdir(out)
    )


@pytest.mark.parametrize("names", [["a.mp4"], ["x/a.mp4", "y/a.mp4"]])
def test_what_was_written_of_a_file_that_fails_now_is_removed(tmp_path, names):
    out, last = tmp_path / "out", names[-1]
    write(out, *names)
    folder = out if len(names) == 1 else out / "a-2"
    assert (folder / "index.html").exists()
    with outputs(OutputConfig(out), names, RULES) as written:
        for name in names[:-1]:
            written.add(name, prediction(name))
        broken = Outcome("quarantined", "unreadable")
        written.add(last, Prediction(Path(last), broken))
    left = {path.name for path in folder.iterdir()}
    assert not left & {"index.html", "timeline.png", "events.vtt", "event-1.jpg"}
    assert last not in {row["path"] for row in read_csv(out / "events.csv")}


def test_no_source_is_removed(tmp_path):
    write(tmp_path, "a.mp4")
    source = shutil.copy("a.mp4", "event-7.mp4")
    write(tmp_path, source, events=())
    assert Path(source).exists()
    assert not Path("event-1.jpg").exists()


def test_each_of_several_files_has_a_folder_of_its_own(tmp_path):
    out, names = tmp_path / "out", ["x/a.mp4", "y/a.mp4", "a-2.mp4", "b.mkv"]
    write(out, *names)
    for folder in ("a", "a-2", "a-2-2", "b"):
        assert (out / folder / "timeline.png").exists()
    paths = [row["path"] for row in read_csv(out / "events.csv")]
    assert paths == [name for name in names for _ in EVENTS]


def test_fiftyone_finds_each_video_and_its_events(tmp_path):
    """As its importer of temporal detections reads two files: no suffix, classes by index."""
    out, names = tmp_path / "out", ["x/a.mp4", "y/a.mp4", "b.mkv"]
    write(out, *names)
    labels = json.loads((out / "events.json").read_text())
    videos = json.loads((out / "videos.json").read_text())
    found = {
        os.path.normpath(os.path.splitext(key)[0]): os.path.normpath(out / path)
        for key, path in videos.items()
    }
    assert found == {
        key: str(tmp_path / name)
        for key, name in zip(("a", "a-2", "b"), names, strict=True)
    }
    assert list(labels["labels"]) == list(found)
    assert labels["classes"][0] == "violence"
    assert labels["labels"]["a-2"] == [
        {"label": 0, "timestamps": [1.25, 2.75], "confidence": 0.9},
        {"label": 0, "timestamps": [3661.5, 3670.25], "confidence": 0.8},
    ]


def test_what_was_done_is_written_when_the_rest_fails(tmp_path):
    def write_and_stop():
        with outputs(OutputConfig(tmp_path), ["a.mp4", "b.mp4"], RULES) as written:
            written.add("a.mp4", prediction(events=()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert read_csv(tmp_path / "events.csv") == []
    assert (tmp_path / "events.csv").read_text().startswith("path,id,start,end")
    assert len(read_csv(tmp_path / "timeline.csv")) == 3


def test_subtitles_are_web_vtt():
    assert subtitles(EVENTS) == (
        "WEBVTT\n\n1\n00:00:01.250 --> 00:00:02.750\nviolence 0.90\n\n"
        "2\n01:01:01.500 --> 01:01:10.250\nviolence 0.80\n"
    )


def test_the_page_names_the_video_from_where_it_is_and_fetches_nothing(tmp_path):
    video = tmp_path / "videos" / "a <b> &.mp4"
    with outputs(OutputConfig(tmp_path / "out"), [video.name], RULES) as written:
        written.add(video.name, prediction(video))
    text = (tmp_path / "out" / "index.html").read_text()
    assert 'src="../videos/a%20%3Cb%3E%20%26.mp4"' in text
    assert "<h1>a &lt;b&gt; &amp;.mp4</h1>" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert 'data-seconds="3661.5">1:01:01</button>' in text


@pytest.mark.parametrize(
    ("name", "annotate", "played"),
    [
        ("a.mp4", True, "../a.mp4"),
        ("b.avi", True, "annotated.mp4"),
        ("b.avi", False, "../b.avi"),
    ],
)
def test_the_page_plays_what_browsers_can(tmp_path, name, annotate, played):
    shutil.copy("a.mp4", "b.avi")
    out = tmp_path / "out"
    write(out, name, config=OutputConfig(out, annotate=annotate))
    text = (out / "index.html").read_text()
    assert f'src="{played}"' in text
    assert f"This browser cannot play {name}" in text


def test_the_page_of_a_short_video_has_tenths_of_seconds_and_no_grey(tmp_path):
    events = (Event(1, 0.75, 1.96, 0.9, 1.0, 0.75, 1.25),)
    write(tmp_path / "long", "a.mp4")
    write(tmp_path / "short", "a.mp4", events=events, span=12.0, gaps=())
    long, short = (
        (tmp_path / name / "index.html").read_text() for name in ("long", "short")
    )
    assert 'data-seconds="0.75">0:00.8</button></td><td>0:02.0</td>' in short
    assert ("Grey" in long, "Grey" in short) == (True, False)


def test_a_curve_is_not_drawn_across_a_gap():
    seconds_W, probability_W = np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3])
    figure = plots.timeline(seconds_W, probability_W, 0.6, 0.4, gaps=[(3.0, 8.0)])
    curve = figure.axes[0].lines[0]
    np.testing.assert_array_equal(curve.get_xdata(), [1, 2, 5.5, 9])
    np.testing.assert_array_equal(curve.get_ydata(), [0.1, 0.2, np.nan, 0.3])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_in_a_browser_the_page_plays_and_goes_where_one_clicks(tmp_path):
    span = 2.0
    events = (Event(1, 0.75, 1.25, 0.9, 1.0, 0.8, 1.5),)
    page = tmp_path / "out" / "index.html"
    with outputs(OutputConfig(page.parent), ["a.mp4"], RULES) as written:
        written.add("a.mp4", prediction("a.mp4", events, span, gaps=()))
    page.write_text(page.read_text().replace("</body>", f"{CLICKS}</body>"))
    done = subprocess.run(
        [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu",
            "--autoplay-policy=no-user-gesture-required",
            f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000",
            "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    (title,) = re.findall("<title>(.*)</title>", done.stdout)
    duration, at_event, highlighted, at_middle, line = json.loads(title)
    assert duration == pytest.approx(span, abs=0.1)
    assert at_event == pytest.approx(0.75, abs=0.6)  # it plays on
    assert highlighted == 1
    assert at_middle == pytest.approx(1.0, abs=0.6)
    assert line == pytest.approx(500, abs=300)
