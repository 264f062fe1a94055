"""Several processes that train one model: who leads, what they tell each other, how they end.

Process 0 leads: it extracts, decides, validates and writes. The others take their rows of
each step and do what they are told. They talk through the coordination service of
`jax.distributed`, which lives in process 0.

Nobody waits for a process that is gone. One that ends says so, and the others end too; one
that is lost without a word is missed by a broken connection, else after HEARTBEAT_SECONDS.
JAX then aborts the process in C++: `vd.supervisor` makes one sentence of that.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn
from urllib.parse import urlsplit

from vd.config import RunConfig
from vd.console import say
from vd.errors import USAGE, VdError
from vd.supervisor import (
    LOST,
    SIGNALS,
    START_SECONDS,
    end,
    started_by_parent,
    supervise,
)

HEARTBEAT_SECONDS = 20
_POLL_SECONDS = 0.5
_FAREWELL_SECONDS = 5.0  # in which the others hear why this process ends
_ENDED = "vd/ended"
_BROKEN = "gloo", "nccl", "coordination", "unavailable"  # what a lost process causes


class Hosts:
    """This process among those of a run; one process alone by default."""

    def __init__(self, index: int = 0, count: int = 1, client: Any = None) -> None:
        self.index, self.count = index, count
        self._client, self._messages = client, 0

    @property
    def lead(self) -> bool:
        """Whether this process decides and writes."""
        return self.index == 0

    def rows(self, batch_size: int) -> range:
        """Which rows of a global batch are this process's."""
        share = batch_size // self.count
        return range(self.index * share, (self.index + 1) * share)

    def tell(self, value: Any) -> None:
        """Say a JSON value to all others, who `hear` it."""
        if self.count > 1:
            self._client.key_value_set(self._next_message(), json.dumps(value))

    def hear(self) -> Any:
        """What process 0 tells next. It may work for hours before."""
        return json.loads(self._wait_for(self._next_message()))

    def meet(self, place: str) -> None:
        """Wait until all processes are at this place."""
        if self.count > 1:
            self._client.key_value_set(f"vd/at/{place}/{self.index}", "")
            for index in range(self.count):
                self._wait_for(f"vd/at/{place}/{index}")

    def wait_for_end(self) -> NoReturn:
        """Do nothing more; the watch ends this process when process 0 ends."""
        while True:
            time.sleep(_POLL_SECONDS)

    def leave(self, code: int, said: str | None) -> NoReturn:
        """End this process, and the others with what this one `said`."""
        ending = {"process": self.index, "code": code, "said": said}
        # another may have been first, or the service gone
        with contextlib.suppress(Exception):
            self._client.key_value_set(_ENDED, json.dumps(ending))
        self._end(code)

    def follow_ending(self) -> bool:
        """End this process if another has ended; returns False when none has."""
        if (text := self._get(_ENDED, _POLL_SECONDS)) is None:
            return False
        ending = json.loads(text)
        if ending["process"] != self.index:
            if ending["said"]:
                say(
                    f"vd: process {self.index} ends because process {ending['process']} "
                    f"did: {ending['said'].removeprefix('vd: ')}"
                )
            self._end(ending["code"])
        return True

    def _end(self, code: int) -> NoReturn:
        """End at once; process 0, where the service lives, after all others know."""
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"vd/knows/{self.index}", "")
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for index in range(self.count if self.lead else 0):
            while time.monotonic() < deadline:
                if self._get(f"vd/knows/{index}", _POLL_SECONDS) is not None:
                    break
        end(code)

    def _next_message(self) -> str:
        self._messages += 1
        return f"vd/told/{self._messages}"

    def _wait_for(self, key: str) -> str:
        """A value that some process will set; signals are looked at every half second."""
        while (value := self._get(key, _POLL_SECONDS)) is None:
            pass
        return value

    def _get(self, key: str, seconds: float) -> str | None:
        """A value, or None when it is not there in time."""
        import jax

        try:
            return str(self._client.blocking_key_value_get(key, int(1000 * seconds)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                time.sleep(seconds)  # the service is gone: JAX ends this process soon
            return None


ALONE = Hosts()
_joined = ALONE
_is_child = False


def several(run: RunConfig) -> bool:
    """Whether this process is one of several; raises `VdError` for flags that do not fit."""
    address, count, index = run.coordinator_address, run.num_processes, run.process_id
    if address == "auto":
        if (count, index) != (None, None):
            raise VdError(
                "--coordinator-address auto takes --num-processes and --process-id from "
                "Slurm or Kubernetes; leave them out, or give HOST:PORT."
            )
        return True
    if (address, count, index) == (None, None, None) or (count, index) == (1, 0):
        return False
    if address is None or count is None or index is None:
        raise VdError(
            "--coordinator-address, --num-processes and --process-id belong together; give "
            "all three, or --coordinator-address auto under Slurm or Kubernetes."
        )
    if index >= count:
        raise VdError(
            f"--process-id {index} is not below --num-processes {count}; number the "
            "processes from 0."
        )
    if not _has_port(address):
        raise VdError(
            f"--coordinator-address {address} has no port that can be; give "
            "HOST:PORT, a free port on the machine of process 0."
        )
    return True


def _has_port(address: str) -> bool:
    """Whether it is HOST:PORT, an IPv6 address being in brackets."""
    try:
        parts = urlsplit(f"//{address}")
        return bool(parts.hostname and parts.port)
    except ValueError:  # beyond 65535, or no number
        return False


def join(run: RunConfig) -> Hosts:
    """Become one of the processes of a run, as the flags say; returns when all are there.

    The process that was called is only the parent of the one that returns from here.
    """
    global _joined, _is_child
    if not several(run):
        return ALONE
    if (parent := started_by_parent()) is None:
        sys.exit(supervise())
    _is_child = True
    say(f"waiting up to {START_SECONDS} s for the other processes of this run")
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _joined = _initialize(run)
    return _joined


def joined() -> Hosts:
    """What `join` has made, else one process alone."""
    return _joined


def leave(code: int, said: str | None = None) -> None:
    """End this process if it is one of several, and the others with it."""
    if _joined.count > 1:
        _joined.leave(code, said)
    elif _is_child:  # JAX's own exit can crash where it could not connect
        end(code)


def unexpected(error: Exception) -> tuple[int, str]:
    """Exit code and sentence for an error without a sentence; raised in a process alone."""
    if _joined.count == 1:
        raise error
    time.sleep(_FAREWELL_SECONDS)  # the watch may hear why, and ends this process
    if any(word in str(error).lower() for word in _BROKEN):
        return USAGE, f"vd: process {_joined.index}: {LOST}"
    traceback.print_exception(error)
    return 1, f"vd: an error that is no user's ({type(error).__name__}); see its output"


def _initialize(run: RunConfig) -> Hosts:
    """Connect to the other processes. Raises `VdError` for an address that cannot be had."""
    import jax
    from jax._src import distributed  # the public part has no key-value store

    # its C++ handler would take SIGTERM from us
    jax.config.update("jax_enable_preemption_service", False)
    given = run.coordinator_address != "auto"
    # C++ waits, and would not let Python's handlers run
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:  # by nohup
            signal.signal(number, signal.SIG_DFL)
    try:
        jax.distributed.initialize(
            run.coordinator_address if given else None,
            run.num_processes,
            run.process_id,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        where = f"--coordinator-address {run.coordinator_address}"
        raise VdError(
            f"{where} cannot be used ({reason}); give a free port on the machine of process 0."
            if given
            else f"{where} found no cluster ({reason}); give HOST:PORT, --num-processes and "
            "--process-id."
        ) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    state = distributed.global_state
    return Hosts(state.process_id, state.num_processes, state.client)


def _watch(parent: int) -> None:
    """End this process when its parent is gone, or another process of the run has ended."""
    while True:
        if os.getppid() != parent:
            os._exit(1)
        if _joined.count == 1:
            time.sleep(_POLL_SECONDS)
        elif _joined.follow_ending():
            return
