"""docs/deploy.md, word for word: thresholds from calm recordings, and cameras into MQTT."""

import configparser
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.broken import noisy_frames, render
from tests.command_line import VD, script, vd
from tests.rtsp_server import STALL, camera

PAGE = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [
    line.partition("#")[0]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
RECORDS = [
    {"type": "status", "source": "rtsp://u:***@door/1", "state": "connected", "began": 1e9},
    {"type": "new", "source": "rtsp://u:***@door/1", "start": 4.25, "end": None},
    {"type": "gap", "source": "0", "start": 1.0, "end": None},
]  # fmt: skip
# stands in for paho-mqtt: a line for each message
PAHO = """
import json
from types import SimpleNamespace

CallbackAPIVersion = SimpleNamespace(VERSION2=2)

class Client:
    def __init__(self, version):
        assert version == 2
    def connect(self, host):
        self.file = open("published.jsonl", "a")
    def loop_start(self):
        pass
    def publish(self, topic, payload, qos, retain):
        self.file.write(json.dumps([topic, json.loads(payload), qos, retain]) + "\\n")
        self.file.flush()
        return SimpleNamespace(wait_for_publish=lambda: None)
    def loop_stop(self):
        self.file.close()
"""


@pytest.fixture
def folder(tmp_path):
    """The page's scripts, and a package that stands in for paho-mqtt."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    package = tmp_path / "paho" / "mqtt"
    package.mkdir(parents=True)
    (package / "client.py").write_text(PAHO)
    return tmp_path


def predict_into(folder, line, run, code=0):
    """A command of the page that writes its lines into a file; their number."""
    words, _, target = line.partition(">")
    words = shlex.split(words)[1:]
    words[words.index("RUN")] = run
    text = vd(*words, code=code, cwd=folder).stdout
    (folder / target.strip()).write_text(text)
    return len(text.splitlines())


def published(folder):
    """What was published so far, without a line that is being written."""
    path = folder / "published.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if "\n" in line]


def test_a_threshold_is_chosen_from_alarms_an_hour(folder):
    program, *words = shlex.split(COMMANDS[1])[1:]
    rows = [
        {"probability": 0.5, "duration": 7200.0, "events": [{"peak": 0.4}, {"peak": 0.9}]},
        {"probability": 0.5, "duration": 28800.0, "events": [{"peak": 0.7}]},
        {"probability": None, "duration": 99999.0, "events": []},
    ]  # fmt: skip
    calm = folder / words[0]
    calm.write_text("\n".join(map(json.dumps, rows)))
    # ten hours, in which one alarm may stay: the one at 0.9
    printed = script(folder / program, calm, words[1]).stdout.splitlines()
    assert printed == ["3 alarms in 10 hours", "try --threshold 0.701"]
    assert script(folder / program, calm, 0.3).stdout == "3 alarms in 10 hours\n"
    # above the highest peak, and still a probability
    assert "try --threshold 0.901\n" in script(folder / program, calm, 0).stdout
    calm.write_text(calm.read_text().replace("0.9", "0.99999"))
    assert "try --threshold 0.999995\n" in script(folder / program, calm, 0).stdout


def test_the_commands_give_the_lines_that_are_counted(trained, folder):
    first, _, again, _, fights, *_ = COMMANDS
    for name in ("calm", "fights"):
        (folder / name).mkdir()
        render(folder / name / "a.mp4", noisy_frames(36))
    (folder / "calm" / "broken.mp4").write_text("no video")
    run = trained[0] / "run"
    for line, code, count in ((first, 1, 2), (again, 1, 2), (fights, 0, 1)):
        assert predict_into(folder, line, run, code) == count
    printed = script(folder / "alarms.py", folder / "calm.jsonl", 1e6).stdout
    assert re.fullmatch(r"[01] alarms in 0.0004 hours\n", printed)


def test_each_record_becomes_a_message(folder):
    done = subprocess.run(
        [sys.executable, "to_mqtt.py"],
        input="".join(json.dumps(record) + "\n" for record in RECORDS),
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == done.stderr == ""
    door = "vd/rtsp%3A%2F%2Fu%3A%2A%2A%2A%40door%2F1"
    assert published(folder) == [
        [f"{door}/status", RECORDS[0], 1, True],
        [f"{door}/new", RECORDS[1] | {"time": 1e9 + 4.25}, 1, False],
        ["vd/0/gap", RECORDS[2], 1, False],
    ]


def test_the_pipe_sends_new_events_a_line_each(folder):
    (pipe,) = (line for line in COMMANDS if "mosquitto_pub" in line)
    programs = folder / "bin"
    programs.mkdir()
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (folder / "records.jsonl").write_text(text)
    for name, line in {
        "vd": "cat records.jsonl",
        "mosquitto_pub": 'echo "$@" > arguments; cat > sent',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(pipe, shell=True, cwd=folder, env={"PATH": path}, check=True)
    assert (folder / "arguments").read_text() == "-h localhost -t vd/new -l\n"
    assert json.loads((folder / "sent").read_text()) == RECORDS[1]


@pytest.mark.slow
def test_the_service_sends_the_end_of_an_event_when_it_is_stopped(trained, folder):
    (text,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    unit = configparser.ConfigParser()
    unit.optionxform = str
    unit.read_string(text)
    shell, flag, line = shlex.split(unit["Service"]["ExecStart"])
    for old, new in {
        "/opt/vd/bin/vd": shlex.join(VD),
        "/etc/vd/cameras.streams": "cameras.streams",
        "/var/lib/vd/run": f"{shlex.quote(str(trained[0] / 'run'))} --threshold 0",
        "/opt/vd/bin/python": shlex.quote(sys.executable),
        "/opt/vd/to_mqtt.py": "to_mqtt.py",
    }.items():
        assert old in line
        line = line.replace(old, new)
    video = render(folder / "video.mp4", noisy_frames(100), b_frames=0)
    with camera([video, STALL]) as server:
        (folder / "cameras.streams").write_text(server.address)
        paths = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
        service = subprocess.Popen(
            [shell, flag, line],
            cwd=folder, env=os.environ | {"PYTHONPATH": paths}, start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + 120
            while not any(t.endswith("/new") for t, *_ in published(folder)):
                assert service.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
            os.killpg(service.pid, signal.SIGTERM)
            assert service.wait(30) == 0
        finally:
            if service.poll() is None:
                os.killpg(service.pid, signal.SIGKILL)
                service.wait()
    kinds = [topic.rpartition("/")[2] for topic, *_ in published(folder)]
    assert kinds[-2:] == ["end", "status"]
    assert published(folder)[-1][1]["state"] == "ended"  # is what the broker keeps
    assert "secret" not in json.dumps(published(folder))
