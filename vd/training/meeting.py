"""What several processes must have in common before they train: devices and files."""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vd.config import Config
from vd.errors import VdError
from vd.files import write_text
from vd.hosts import Hosts
from vd.training import run_folder

if TYPE_CHECKING:
    import jax

SHARED_FILE = ".lock-shared"  # in the run folder, while the processes look for it
_LOOK_SECONDS = 60.0  # network file systems show a new file late


def devices_of_all(config: Config, hosts: Hosts) -> "Sequence[jax.Device]":
    """The devices of several processes, as many of each; none in a process alone.

    Process 0 tells what was asked for, or used before. Here JAX starts in all.
    """
    if hosts.count == 1:
        return ()
    from vd.devices import joint_devices, say_other_devices

    path, asked, total = config.run.checkpoint_dir, config.run.devices, 0
    if hosts.lead:
        if (path / "config.json").exists() and not config.run.fresh:
            total = run_folder.read_config(path)["devices"]["count"]
        hosts.tell([asked, total])
    else:
        asked, total = hosts.hear()
    before = None if total % hosts.count else total // hosts.count
    devices = joint_devices(asked, before, config.training.batch_size, hosts.count)
    if hosts.lead and asked is None and total not in (0, len(devices)):
        say_other_devices(total, len(devices))
    return devices


@contextmanager
def shown(hosts: Hosts, run_dir: Path, batch_size: int) -> Iterator[None]:
    """In process 0: tell the others to begin, and where to see what it has written."""
    if hosts.count == 1:
        yield
        return
    token = secrets.token_hex()
    write_text(run_dir / SHARED_FILE, token)
    hosts.tell({"token": token, "batch_size": batch_size})
    try:
        yield
    finally:
        (run_dir / SHARED_FILE).unlink(missing_ok=True)


def look(run_dir: Path, told: dict[str, Any], hosts: Hosts) -> None:
    """In another: raise `VdError` unless it sees the folder of process 0."""
    path, deadline = run_dir / SHARED_FILE, time.monotonic() + _LOOK_SECONDS
    while not (path.exists() and path.read_text() == told["token"]):
        if time.monotonic() > deadline:
            raise VdError(
                f"process {hosts.index} does not see the files of process 0 in "
                f"--checkpoint-dir {run_dir.absolute()}; give all processes folders on one "
                "shared file system, by the same names."
            )
        time.sleep(0.2)
