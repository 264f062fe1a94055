"""Devices to train on, and what JAX needs before it first runs."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from vd.config import usable_cores
from vd.errors import VdError

_MOST_CPU_DEVICES = 8
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # <malloc.h>


@contextlib.contextmanager
def own_numerics() -> Iterator[None]:
    """Compute as JAX does by default, whatever its environment variables or a notebook set.

    Float32, products at the device's usual precision, threefry draws. Also a decorator.
    """
    with (
        jax.enable_x64(False),
        jax.default_matmul_precision(None),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
    ):
        yield


def prepare_jax(cpu_devices: int = 1) -> None:
    """Set the number of CPU devices, unless JAX has run before, and cache programs.

    Compiled programs go to $JAX_COMPILATION_CACHE_DIR, else to the user's cache folder.
    Raises `VdError` when JAX_PLATFORMS names a device that is not here.
    """
    _keep_freed_memory()
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with contextlib.suppress(RuntimeError):  # a user without a home
        if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009  # untyped
            folder = root.expanduser() / "vd" / "xla"
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    with contextlib.suppress(RuntimeError):  # JAX ran before and keeps its devices
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter without a plugin
        if platforms := os.environ.get("JAX_PLATFORMS"):
            raise VdError(
                f"JAX_PLATFORMS={platforms} names a device that JAX does not find here; "
                "correct it, or unset it to use what there is."
            ) from error
        raise


def _keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next one.

    By default it returns large arrays to the system, which zeroes their pages at the next
    use: up to a fifth of a step. Before 2.35 the first setting is refused, and the other
    two alone would do harm.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return  # a user's own settings
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_M_MMAP_THRESHOLD, 2**30):
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_M_ARENA_MAX, 1)


def most_cpu_devices() -> int:
    """How many CPU devices a process has at most by default."""
    return min(usable_cores(), _MOST_CPU_DEVICES)


def training_devices(
    requested: int | None,
    batch_size: int,
    processes: int = 1,
    before: int | None = None,
) -> list[jax.Device]:
    """The devices of all processes: of each as many as requested, or as divide its rows.

    Without a request they are at most as many as `before`, when the run began. On a CPU there
    is one device a core, since small operations then run side by side.
    Raises `VdError` when more are requested than there are.
    """
    rows, most = batch_size // processes, (before or 0) // processes
    prepare_jax(requested or _divisor(rows, most or most_cpu_devices()))
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    fewest = min(map(len, by_process.values()))
    if requested is not None and fewest < requested:
        raise VdError(
            f"--devices {requested} is more than the {fewest} devices of this machine; give "
            "a smaller number."
        )
    each = requested or _divisor(rows, min(fewest, most or fewest))
    return [device for devices in by_process.values() for device in devices[:each]]


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(d for d in range(most, 0, -1) if number % d == 0)
