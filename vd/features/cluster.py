"""Extraction on a Ray cluster whose nodes share their files; the records are the same.

Each replica of the backbone, an actor, takes a chunk of videos at a time and writes a shard
into the store's folder; only this process numbers the shards. Ray restarts a dead replica
on another node and repeats its chunk; shards that were not reported are deleted at the end.
Only names and outcomes travel over the network.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vd.config import Config
from vd.console import SLICE_SECONDS, check_interrupt, say
from vd.data.manifest import Video
from vd.data.workers import decode_pool
from vd.errors import VdError
from vd.features.backbone import find_backbone
from vd.features.engines import make_engine
from vd.features.extract import StretchDone, extract_videos
from vd.features.shards import ShardWriter
from vd.features.store import FeatureStore, open_store
from vd.files import temporary

_CHUNK = 64  # videos of a task at most
_ROUNDS = 4  # tasks of a replica at least, so that all end at about the same time
_RESTARTS = 8  # of one replica
_HEALTH_SECONDS = 20.0


# of videos that are finished: their shard, the rows of its index, and their stretches
_Chunk = tuple[Path, list[dict[str, Any]], list[StretchDone]]


class _Replica:
    """On a node: the backbone on one core, and a decoding process of its own."""

    def __init__(self, config: Config, fingerprint: str, current: Path) -> None:
        with suppress(OSError):  # absolute paths need no current folder
            os.chdir(current)
        self._decode = replace(
            config.decode, decode_workers=config.decode.decode_workers or 1
        )
        self._backbone = find_backbone(config.backbone)
        self._engine = make_engine(self._backbone, config.backbone.engine, threads=1)
        cache_dir = config.data.cache_dir
        self._store = open_store(cache_dir, self._backbone, self._engine.dim)
        self._same = self._store.fingerprint == fingerprint

    def extract(self, first: int, videos: Sequence[Video], folder: Path) -> _Chunk:
        """Write a shard of the videos, of which the first has the index `first`."""
        if not self._same or not folder.is_dir():
            raise VdError(
                f"the Ray node {os.uname().nodename} has another version of vd, or does not "
                f"see {folder.parent}; install the same packages and mount the same folders "
                "on all nodes."
            )
        shard = ShardWriter(folder / uuid.uuid4().hex, self._store.format)
        views = self._backbone.views
        with decode_pool(self._backbone.frames, self._decode, len(videos)) as pool:
            stretches = [
                stretch._replace(video=first + stretch.video)
                for stretch in extract_videos(
                    videos, pool, self._engine, views, folder, shard.add
                )
            ]
        shard.close()
        return shard.path, shard.rows, stretches


def extract_on_ray(
    videos: Sequence[Video], store: FeatureStore, config: Config, address: str
) -> Iterator[StretchDone]:
    """Write the videos' features into the store; yields the stretches of finished chunks.

    The caller holds the store's lock. Raises `VdError` when there is no such cluster, a node
    cannot do its part, or the disk is full; finished chunks are kept.
    """
    folder = temporary(store.directory.absolute() / "chunks")
    with _connected(address) as ray:
        from ray.exceptions import RayActorError, RayTaskError

        try:
            folder.mkdir(parents=True, exist_ok=True)
            for shard, rows, stretches in _chunks(ray, videos, store, config, folder):
                store.adopt(shard, rows)
                yield from stretches
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, VdError) else error from None
        except RayActorError as error:
            raise VdError(
                f"a replica on the Ray cluster died more than {_RESTARTS} times, or could "
                f"not start ({str(error).splitlines()[-1]}); run the same command again: "
                "finished chunks are kept."
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _chunks(
    ray: Any, videos: Sequence[Video], store: FeatureStore, config: Config, folder: Path
) -> Iterator[_Chunk]:
    """The chunks of the videos as replicas finish them."""
    from ray.util import ActorPool

    resource = "GPU" if config.backbone.engine == "jax" else "CPU"
    slots = int(ray.cluster_resources().get(resource, 0))
    if slots == 0:
        raise VdError(f"the Ray cluster has no {resource}; add a node that has one.")
    count = min(slots, len(videos))
    size = max(1, min(_CHUNK, len(videos) // (count * _ROUNDS)))
    say(f"on a Ray cluster: {count} replicas of the backbone, {size} videos at a time")
    # one slot each, so that a replica fits wherever another one was
    actor = ray.remote(_Replica).options(
        num_cpus=1, num_gpus=int(resource == "GPU"), max_restarts=_RESTARTS, max_task_retries=-1
    )  # fmt: skip
    replica = config, store.fingerprint, Path.cwd()
    # only the pool refers to the replicas: one that it drops ends and frees its slot
    pool = ActorPool([actor.remote(*replica) for _ in range(count)])
    for first in range(0, len(videos), size):
        task = first, videos[first : first + size], folder
        pool.submit(lambda replica, task: replica.extract.remote(*task), task)
    while pool.has_next():
        check_interrupt()
        try:
            chunk = pool.get_next_unordered(timeout=SLICE_SECONDS)
        except TimeoutError:
            continue
        yield chunk
        if pool.has_free():  # nothing waits: free the slot for one that restarts
            pool.pop_idle()


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to a running cluster; the replicas end with the block."""
    try:
        import ray
    except ImportError as error:
        raise VdError(
            "--executor ray needs the package ray; install vd with the extra `ray`."
        ) from error
    # a process of its own: ray.init would try for many minutes, or forever
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    former = signal.getsignal(signal.SIGTERM)
    try:
        subprocess.run(
            [*check, "--address", address],
            check=True,
            capture_output=True,
            timeout=_HEALTH_SECONDS,
        )
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise VdError(
            f"no Ray cluster answers at --ray-address {address} "
            f"({str(error).splitlines()[0]}); start one with `ray start --head`, or give "
            "HOST:PORT of its head node."
        ) from error
    signal.signal(signal.SIGTERM, former)  # Ray replaced it
    # Ray prints a page of a dead node's log on standard output
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            yield ray
        finally:
            ray.shutdown()
