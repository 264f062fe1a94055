"""Several processes that train one model: all run one program over all devices.

Process 0 alone locks the run folder, restores, validates, decides, saves, and broadcasts.
A process that fails ends at once; JAX then ends the others, which miss its heartbeat.
"""

import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar, cast

from vd.config import RunConfig
from vd.console import result_of, say
from vd.errors import VdError

_HEARTBEAT_SECONDS = 20
LOST = (
    "an error ended this process, perhaps because another process of this run was lost; "
    "finished work is kept: start all processes again with the same commands."
)
_START_SECONDS = 300  # within which all processes must start
_LEAVE_SECONDS = 86_400  # process 0 may still be writing a checkpoint

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of a run."""

    index: int = 0
    count: int = 1


_processes = Processes()


def several(run: RunConfig) -> bool:
    """Whether the flags ask for several processes; raises `VdError` for wrong ones."""
    address, count, index = run.coordinator_address, run.num_processes, run.process_id
    if address == "auto":
        return True
    if (address, count, index) == (None, None, None) or (count, index) == (1, 0):
        return False
    host, _, port = (address or "").rpartition(":")
    has_port = host and port.isdecimal()
    if not has_port or count is None or index is None or index >= count:
        raise VdError(
            f"--coordinator-address {address}, --num-processes {count} and --process-id "
            f"{index} do not fit together; give HOST:PORT with a free port on the machine of "
            "process 0, N, and a number from 0 to N - 1, or --coordinator-address auto "
            "under Slurm or Kubernetes."
        )
    return True


def join(run: RunConfig) -> None:
    """Connect to the other processes if the flags ask for several; JAX starts here."""
    global _processes
    if several(run):
        _processes = Processes(run.process_id or 0, run.num_processes or 2)
        say(f"waiting up to {_START_SECONDS} s for the other processes of this run")
        _processes = _in_thread(lambda: _initialize(run))


def _initialize(run: RunConfig) -> Processes:
    import jax

    from vd.devices import most_cpu_devices, prepare_jax

    # its C++ handler would take SIGTERM from us
    jax.config.update("jax_enable_preemption_service", False)
    given = run.coordinator_address != "auto"
    try:
        jax.distributed.initialize(
            run.coordinator_address if given else None,
            run.num_processes,
            run.process_id,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_LEAVE_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise VdError(
            f"--coordinator-address {run.coordinator_address} cannot be used ({reason}); "
            "give HOST:PORT, a free port on the machine of process 0, with --num-processes "
            "and --process-id."
        ) from error
    prepare_jax(run.devices or most_cpu_devices())
    return Processes(jax.process_index(), jax.process_count())


def processes() -> Processes:
    """This process among those that have joined; one process alone by default."""
    return _processes


def is_lead() -> bool:
    """Whether this process decides and writes."""
    return _processes.index == 0


def rows(batch_size: int) -> range:
    """Which rows of a global batch this process reads."""
    share = batch_size // _processes.count
    return range(_processes.index * share, (_processes.index + 1) * share)


def broadcast(value: T | None) -> T:
    """The value of process 0, in every process; all must call it at the same place."""
    if _processes.count == 1:
        return cast(T, value)
    return _in_thread(lambda: _broadcast(value))


def _broadcast(value: T | None) -> T:
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    content = np.frombuffer(pickle.dumps(value), np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(content))))
    received = broadcast_one_to_all(np.resize(content, size))
    return pickle.loads(received.tobytes())  # of this run's process 0


def part() -> None:
    """Disconnect, once all have come here; process 0 goes on as one process alone."""
    global _processes
    if _processes.count > 1:
        import jax

        _in_thread(jax.distributed.shutdown)
        _processes = replace(_processes, count=1)


def end(code: int) -> NoReturn:
    """Exit; after an error at once, so that the others miss this process's heartbeat."""
    if code and _processes.count > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _in_thread(call: Callable[[], T]) -> T:
    """The result of a call that waits in C++; signals are asked for meanwhile."""
    return result_of(ThreadPoolExecutor(1).submit(call))
