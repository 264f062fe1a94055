"""Extraction on a Ray cluster: the same records and the same ledger as on one machine."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_line import VD, vd
from vd.config import BackboneConfig
from vd.errors import VdError
from vd.features import cluster as cluster_module
from vd.features.backbone import find_backbone
from vd.features.store import open_store

pytestmark = pytest.mark.slow

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes, of a core each."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ray_cluster"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        process.address = process.stdout.readline().strip()
        assert process.address
        yield process


def arguments(clips, backbone, cache):
    return [
        "extract", "--dataset-path", clips, "--backbone", backbone, "--cache-dir", cache,
        "--max-loss-gap", "1",
    ]  # fmt: skip


def store_in(cache, backbone):
    config = BackboneConfig(backbone=str(backbone))
    return open_store(cache, find_backbone(config), 8)


def contents(store):
    """Outcome and features of each stored video."""
    return {
        row.id: (
            row.outcome,
            [store.read(row.id, v).tobytes() for v in range(row.views)],
        )
        for row in store.rows.values()
    }


def test_a_node_killed_midway_changes_no_record_and_no_line_of_the_ledger(
    cluster, clips, backbone, tmp_path
):
    root = tmp_path / "set"
    shutil.copytree(clips, root)
    (root / "train" / "violent" / "text.mp4").write_text("no video " * 100)
    (root / "train" / "violent" / "empty.mp4").touch()
    here, there = tmp_path / "here", tmp_path / "there"
    vd(*arguments(root, backbone, here))
    ray = ["--executor", "ray", "--ray-address", cluster.address]
    command = [*map(str, [*VD, *arguments("set", backbone, "there"), *ray])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        while process.poll() is None and not list(there.rglob("index-00001.csv")):
            time.sleep(0.01)
        done = len(list(there.rglob("index-*.csv")))
        cluster.stdin.write("kill\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline() == "killed\n"
        output, messages = process.communicate()
    assert process.returncode == 0, messages
    assert output == ""
    assert "2 replicas of the backbone, 4 videos at a time" in messages
    local, remote = store_in(here, backbone), store_in(there, backbone)
    assert 2 <= done < len(remote.lengths) == 9  # it fell midway
    assert len(contents(local)) == 33  # the empty file has no content to go by
    assert contents(local) == contents(remote)
    assert (here / "ledger.csv").read_bytes() == (there / "ledger.csv").read_bytes()
    assert not list(remote.directory.glob("*.tmp-*"))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "host:port", "127.0.0.1:9", "a silent port"]
)
def test_an_address_without_a_cluster_is_one_sentence(address, monkeypatch):
    monkeypatch.setattr(cluster_module, "_HEALTH_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls
        if address == "a silent port":
            address = f"127.0.0.1:{silent.getsockname()[1]}"
        reason = f"no Ray cluster answers at --ray-address {address} .*ray start --head"
        with pytest.raises(VdError, match=reason), cluster_module._connected(address):
            pass


def test_sigterm_keeps_finished_chunks(cluster, clips, backbone, tmp_path):
    cache = tmp_path / "cache"
    ray = ["--executor", "ray", "--ray-address", cluster.address]
    command = [*map(str, [*VD, *arguments(clips, backbone, cache), *ray])]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not list(cache.rglob("index-00001.csv")):
            time.sleep(0.01)
        process.terminate()
        output, messages = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, messages
    assert output == ""
    assert messages.splitlines()[-1].startswith(
        "vd: interrupted; finished work is kept"
    )
    assert len(contents(store_in(cache, backbone))) >= 2
