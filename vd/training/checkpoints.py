"""Checkpoints by orbax, each with a sha256 of its leaves: the last two and their best."""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from rich.filesize import decimal

from vd.console import say
from vd.errors import VdError
from vd.models.head import Params
from vd.training.log import EpochSums
from vd.training.step import TrainState
from vd.training.validation import EarlyStopping

# orbax tells of every save and option, asyncio of the second leaf that cannot be read;
# the first error reaches us as an exception
for _logger in ("absl", "asyncio"):
    logging.getLogger(_logger).setLevel(logging.CRITICAL)

_print_unraisable = sys.unraisablehook


def _tell_unraisable(told: Any) -> None:
    """Print what no caller can catch, but for the leaves that a failed restore gave up."""
    if str(told.exc_value) != "Event loop is closed":
        _print_unraisable(told)


sys.unraisablehook = _tell_unraisable

Event = Literal[
    "step-begin",
    "step-end",  # its metrics have come from the device
    "evaluation-begin",
    "evaluation-end",
    "write-begin",  # of a checkpoint, in the background
    "write-end",
]
OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Do nothing at an event of training."""


_WRITE_SECONDS = 86_400  # time while the program is stopped (Ctrl-Z) counts
_FULL = "free some space, then run the same command again: it goes on from the checkpoint before."


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands: all that it needs to go on as if it had never stopped."""

    state: TrainState
    stopping: EarlyStopping  # after the last epoch that was finished
    sums: EpochSums = field(default_factory=EpochSums)  # of the epoch under way

    @property
    def epoch(self) -> int:
        """The epoch it belongs to: the one under way, else the last."""
        return self.stopping.epoch + (self.sums.steps > 0)


class Checkpoints:
    """The checkpoints of a run folder, named by their epoch; written in the background."""

    def __init__(
        self,
        run_dir: Path,
        read_only: bool = False,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self._on_event = on_event
        self._writing = False
        # by epoch, what a checkpoint names as the best
        self._bests: dict[int, int] = {}
        folder = run_dir.absolute() / "checkpoints"
        if not read_only:
            folder.mkdir(exist_ok=True)
        alone = None  # of several processes the first works without the others
        if jax.process_count() > 1:
            alone = {jax.process_index()}
        self._manager = ocp.CheckpointManager(
            folder,
            item_names=("params", "rest", "info"),
            options=ocp.CheckpointManagerOptions(
                create=False,
                async_options=ocp.AsyncOptions(timeout_secs=_WRITE_SECONDS),
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes=alone, barrier_sync_key_prefix=alone and "alone"
                ),
            ),
        )

    def save(self, at: Checkpoint) -> None:
        """Start writing a checkpoint, which is named by its epoch; drop those not kept.

        The write before is waited for, so that one is whole on the disk. One within an epoch
        makes way for that of the whole epoch, before this is written.
        """
        state = jax.device_get(at.state)
        rest = {"step": state.step, "opt_state": state.opt_state}
        info = {"stopping": asdict(at.stopping), "sums": asdict(at.sums)}
        info["sha256"] = {
            "params": _sha256(state.params),
            "rest": _sha256(rest),
            "info": _sha256_json(info),
        }
        self.wait()
        self._prune()
        self._check_space(state)
        if at.epoch in self._manager.all_steps():
            self._manager.delete(at.epoch)
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(rest),
            info=ocp.args.JsonSave(info),
        )
        with self._explaining():
            self._manager.save(at.epoch, args=args)
        self._bests[at.epoch] = at.stopping.best_epoch
        self._writing = True
        self._on_event("write-begin")

    def _check_space(self, state: TrainState) -> None:
        """Raise `VdError` before a write that cannot end: orbax fails in many threads."""
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._manager.directory).free
        if free < 1.1 * size:
            raise VdError(
                f"{self._manager.directory} has {decimal(free)} free but a checkpoint needs "
                f"{decimal(int(1.1 * size))}; {_FULL}"
            )

    def _prune(self) -> None:
        """Keep the last two of what is whole on the disk, and the best that each names.

        Nothing goes before this process has saved one, or gone on from one.
        """
        epochs = sorted(self._manager.all_steps())
        bests = {self._best_of(epoch) for epoch in epochs[-2:] if self._bests}
        if bests and None not in bests:
            for epoch in set(epochs[:-2]) - bests:
                self._manager.delete(epoch)

    def _best_of(self, epoch: int) -> int | None:
        """The best epoch that a checkpoint names; None when it is damaged."""
        if epoch not in self._bests:
            with suppress(VdError):
                self._bests[epoch] = self._info(epoch)["stopping"]["best_epoch"]
        return self._bests.get(epoch)

    def wait(self) -> None:
        """Wait for the write in the background; a full disk is one sentence."""
        with self._explaining():
            self._manager.wait_until_finished()
        if self._writing:
            self._writing = False
            self._on_event("write-end")

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise VdError(
                f"{self._manager.directory} cannot be written ({error!s:.300}); {_FULL}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the write in the background and free orbax's threads."""
        self.wait()
        self._prune()
        self._manager.close()

    def restore_last(self, like: TrainState) -> Checkpoint | None:
        """The newest whole checkpoint in the form of `like`, or None; damaged ones are said.

        Raises `VdError` when the best one is damaged, which no other can stand for.
        """
        rest_like = {"step": like.step, "opt_state": like.opt_state}
        aside = False
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            try:
                info = self._info(epoch)
                params = self._item(epoch, "params", like.params)
                rest = self._item(epoch, "rest", rest_like)
            except VdError as error:
                reason = str(error).partition(";")[0]
                say(f"warning: {reason}; it is set aside, the one before it is used")
                self._set_aside(epoch)
                aside = True
                continue
            self._bests[epoch] = best = info["stopping"]["best_epoch"]
            if best not in (0, epoch):  # rather than find out when training ends
                self._item(best, "params", like.params)
            return Checkpoint(
                TrainState(rest["step"], params, rest["opt_state"]),
                EarlyStopping(**info["stopping"]),
                EpochSums(**info["sums"]),
            )
        if aside:
            say("warning: no whole checkpoint is left, so training starts over")
        return None

    def newest(self) -> Path | None:
        """The folder of the newest checkpoint that is whole, once the write ends."""
        self.wait()
        epoch = self._manager.latest_step()
        return None if epoch is None else Path(self._manager.directory) / str(epoch)

    def _set_aside(self, epoch: int) -> None:
        """Give a damaged checkpoint a name under which neither it nor a new one is lost."""
        folder = Path(self._manager.directory)
        aside = folder / f"damaged-{epoch}"
        shutil.rmtree(aside, ignore_errors=True)
        (folder / str(epoch)).rename(aside)
        self._manager.reload()

    def restore_best(self, params_like: Params) -> tuple[Params, int]:
        """The best parameters and their epoch, as the newest checkpoint's state names it.

        Raises `VdError` when one of the two is damaged.
        """
        last = self._manager.latest_step()
        if last is not None:
            best = self._info(last)["stopping"]["best_epoch"]
            return self._item(best, "params", params_like), best
        raise VdError(
            f"{self._manager.directory} holds no checkpoint; train first, or name another "
            "--checkpoint-dir."
        )

    def _info(self, epoch: int) -> dict[str, Any]:
        args = ocp.args.Composite(info=ocp.args.JsonRestore())
        info: dict[str, Any] = self._read(epoch, args)["info"]
        told = {name: value for name, value in info.items() if name != "sha256"}
        try:
            if _sha256_json(told) != info["sha256"]["info"]:
                raise self._damaged(epoch, "the checksum of its info differs")
        except (KeyError, TypeError) as error:
            raise self._damaged(epoch, "its info is not whole") from error
        return info

    def _item(self, epoch: int, name: str, like: Any) -> Any:
        """One item in the form of `like`, its sha256 verified: orbax misses a flipped byte."""
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(like)})
        restored = self._read(epoch, args)[name]
        if jax.tree.map(np.shape, restored) != jax.tree.map(np.shape, like):
            raise self._damaged(epoch, "its shapes are not those of config.json")
        if _sha256(restored) != self._info(epoch)["sha256"][name]:
            raise self._damaged(epoch, "its checksum differs")
        return restored

    def _read(self, epoch: int, args: Any) -> Any:
        try:
            return self._manager.restore(epoch, args=args)
        except (
            Exception
        ) as error:  # whatever orbax and tensorstore make of damaged files
            raise self._damaged(epoch, type(error).__name__) from error

    def _damaged(self, epoch: int, why: str) -> VdError:
        return VdError(
            f"the checkpoint {self._manager.directory / str(epoch)} is damaged ({why}); put "
            "a copy of it back, or train again with --fresh"
        )


def _sha256(tree: Any) -> str:
    """SHA-256 over the leaves' names, dtypes, shapes and bytes, in the tree's order."""
    digest = hashlib.sha256()
    for part in _leaf_bytes(tree):
        digest.update(part)
    return digest.hexdigest()


def _sha256_json(values: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _leaf_bytes(tree: Any) -> Iterator[bytes]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        yield f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode()
        yield np.ascontiguousarray(array).tobytes()
