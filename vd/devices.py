"""What must be said before JAX first runs: CPU devices, programs' folder, memory to keep."""

import contextlib
import ctypes
import os
from pathlib import Path

import jax

from vd.config import usable_cores
from vd.console import say
from vd.errors import VdError

_MOST_CPU_DEVICES = 8
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # <malloc.h>


def prepare_jax(cpu_devices: int = 1) -> None:
    """Set the number of CPU devices, where JAX has not run yet, and keep programs.

    Compiled programs live in $JAX_COMPILATION_CACHE_DIR, else in the user's cache folder,
    where there is one. From here on the process keeps the memory that it frees, up to its
    peak, for what comes next.
    """
    _keep_freed_memory()
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with contextlib.suppress(RuntimeError):  # a user without a home
        if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009  # untyped
            folder = root.expanduser() / "vd" / "xla"
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    with contextlib.suppress(RuntimeError):  # JAX ran before: its devices stay
        jax.config.update("jax_num_cpu_devices", cpu_devices)


def _keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one.

    It would give arrays of tens of MiB back to the system, which zeroes each page of them
    when it is next touched: up to a fifth of a step. Only glibc has these settings, before
    2.35 with too low a limit (the other two alone would do harm); a user's own stay.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_M_MMAP_THRESHOLD, 2**30):
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_M_ARENA_MAX, 1)


def training_devices(requested: int | None, batch_size: int) -> list[jax.Device]:
    """The devices to train on: those asked for, else as many as divide the batch.

    On a CPU there is one device a core, since small operations then run side by side.
    Raises `VdError` when the batch does not divide, or there are fewer devices.
    """
    if requested is not None and batch_size % requested:
        raise VdError(
            f"--batch-size {batch_size} does not divide over --devices {requested}; "
            f"give a multiple of {requested}, or another number of devices."
        )
    wanted = requested or _divisor(batch_size, min(usable_cores(), _MOST_CPU_DEVICES))
    prepare_jax(wanted)
    present = jax.local_devices()
    if requested is not None and len(present) < requested:
        raise VdError(
            f"--devices {requested} was asked for but {len(present)} can be had; give a "
            "smaller number."
        )
    return present[: requested or _divisor(batch_size, len(present))]


def say_other_devices(before: int, now: int) -> None:
    """Say that a run goes on with other devices than it began with."""
    say(
        f"warning: the run began on {before} devices and {now} are here: the last bits of "
        "its numbers will differ"
    )


def joint_devices(
    requested: int | None, before: int | None, batch_size: int, processes: int
) -> list[jax.Device]:
    """The devices of all processes, as many of each: those asked for, else those `before`.

    All processes call it, since JAX starts in all at once. Raises `VdError` when some
    process has fewer than were asked for.
    """
    rows = batch_size // processes
    cores = _divisor(rows, min(usable_cores(), _MOST_CPU_DEVICES))
    prepare_jax(requested or before or cores)
    present: dict[int, list[jax.Device]] = {}
    for device in sorted(jax.devices(), key=lambda d: (d.process_index, d.id)):
        present.setdefault(device.process_index, []).append(device)
    least = min(map(len, present.values()))
    if requested is not None and least < requested:
        raise VdError(
            f"--devices {requested} was asked for but some process has {least}; give a "
            "smaller number."
        )
    asked = requested or before
    each = asked if asked and asked <= least else _divisor(rows, least)
    return [device for devices in present.values() for device in devices[:each]]


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(d for d in range(most, 0, -1) if number % d == 0)
