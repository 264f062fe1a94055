"""Checkpoints by orbax, each with a sha256 of its leaves: the last two and their best."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    PolicyCheckpointInfo,
    PreservationContext,
    PreservationPolicy,
)

from vd.console import say
from vd.errors import VdError
from vd.models.head import Params
from vd.training.log import EarlyStopping, EpochSums
from vd.training.step import TrainState

_WRITE_SECONDS = 86_400  # time while the program is stopped (Ctrl-Z) counts


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands: all that it needs to continue as if it had never stopped."""

    state: TrainState
    stopping: EarlyStopping  # after the last finished epoch
    sums: EpochSums = field(default_factory=EpochSums)  # of the current epoch

    @property
    def epoch(self) -> int:
        """The current epoch if it has begun, else the last finished one."""
        return self.stopping.epoch + (self.sums.steps > 0)


class _LastTwoAndTheirBest(PreservationPolicy):
    """Keeps the last two checkpoints, and the best one that each of them names."""

    def __init__(self) -> None:
        # by epoch; where one is not known, as before a restoration, nothing is deleted
        self.best_of: dict[int, int] = {}

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext,
    ) -> Sequence[bool]:
        """Whether to keep each checkpoint; orbax asks before a save and deletes after it."""
        epochs = [checkpoint.step for checkpoint in checkpoints]
        last = epochs[-2:]
        known = self.best_of.keys() >= set(last)
        kept = {*last, *(self.best_of[epoch] for epoch in last if known)}
        return [epoch in kept or not known for epoch in epochs]


class Checkpoints:
    """The checkpoints of a run folder, named by epoch; they are written in the background."""

    def __init__(self, run_dir: Path, read_only: bool = False) -> None:
        self._policy = _LastTwoAndTheirBest()
        self._folder = run_dir.absolute() / "checkpoints"
        if not read_only:
            self._folder.mkdir(exist_ok=True)
        # every error reaches us as an exception; the filter is added once
        logging.getLogger("absl").addFilter(_is_not_from_orbax)
        # process 0 of several saves without the others
        alone = {jax.process_index()} if jax.process_count() > 1 else None
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_names=("params", "rest", "info"),
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=self._policy,
                async_options=ocp.AsyncOptions(timeout_secs=_WRITE_SECONDS),
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes=alone, barrier_sync_key_prefix=alone and "alone"
                ),
            ),
        )

    def save(self, at: Checkpoint) -> None:
        """Start writing a checkpoint, after the previous write."""
        state = jax.device_get(at.state)
        rest = {"step": state.step, "opt_state": state.opt_state}
        info = {"stopping": asdict(at.stopping), "sums": asdict(at.sums)}
        info["sha256"] = {
            "params": _sha256(state.params),
            "rest": _sha256(rest),
            "info": _sha256_json(info),
        }
        self.wait()
        if at.epoch in self._manager.all_steps():  # one that was saved within the epoch
            self._manager.delete(at.epoch)
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(rest),
            info=ocp.args.JsonSave(info),
        )
        self._policy.best_of[at.epoch] = at.stopping.best_epoch
        with self._explaining():
            self._manager.save(at.epoch, args=args)

    def wait(self) -> None:
        """Wait for the write in the background."""
        with self._explaining():
            self._manager.wait_until_finished()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn an error of a write into one sentence."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise VdError(
                f"{self._folder} cannot be written ({error!s:.300}); free some space, then "
                "run the same command again: it continues from the previous checkpoint."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the write in the background and end orbax's threads."""
        self.wait()
        self._manager.close()

    def restore_last(self, like: TrainState) -> Checkpoint | None:
        """The newest whole checkpoint in the form of `like`, or None.

        Damaged ones are set aside with a warning; a damaged best one is a `VdError`.
        """
        rest_like = {"step": like.step, "opt_state": like.opt_state}
        epochs = sorted(self._manager.all_steps(), reverse=True)
        for epoch in epochs:
            try:
                info = self._info(epoch)
                params = self._item(epoch, "params", like.params)
                rest = self._item(epoch, "rest", rest_like)
            except VdError as error:
                reason = str(error).partition(";")[0]
                say(f"warning: {reason}; it is set aside, the previous one is used")
                aside = self._folder / f"damaged-{epoch}"
                shutil.rmtree(aside, ignore_errors=True)
                (self._folder / str(epoch)).rename(aside)
                self._manager.reload()
                continue
            self._policy.best_of[epoch] = best = info["stopping"]["best_epoch"]
            if best not in (0, epoch):  # rather than find out when training ends
                self._item(best, "params", like.params)
            return Checkpoint(
                TrainState(rest["step"], params, rest["opt_state"]),
                EarlyStopping(**info["stopping"]),
                EpochSums(**info["sums"]),
            )
        if epochs:
            say("warning: no whole checkpoint is left, so training starts over")
        return None

    def restore_best(self, params_like: Params) -> tuple[Params, int]:
        """The best parameters and their epoch, as the newest checkpoint names it.

        Raises `VdError` when there is none, or it is damaged.
        """
        self.wait()
        last = self._manager.latest_step()
        if last is None:
            raise VdError(
                f"{self._folder} holds no checkpoint; train first, or name another "
                "--checkpoint-dir."
            )
        best = self._info(last)["stopping"]["best_epoch"]
        if best == 0:
            raise VdError(
                f"no epoch in {self._folder} has a defined early-stopping metric; train "
                "with --fresh and another --early-stopping-metric, such as val_loss."
            )
        return self._item(best, "params", params_like), best

    def _info(self, epoch: int) -> dict[str, Any]:
        """Early stopping, sums and checksums of a checkpoint, verified."""
        args = ocp.args.Composite(info=ocp.args.JsonRestore())
        info: dict[str, Any] = self._read(epoch, args)["info"]
        values = {name: value for name, value in info.items() if name != "sha256"}
        if _sha256_json(values) != info.get("sha256", {}).get("info"):
            raise self._damaged(epoch, "the checksum of its info differs")
        return info

    def _item(self, epoch: int, name: str, like: Any) -> Any:
        """One item in the form of `like`, its sha256 verified: orbax misses a flipped byte."""
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(like)})
        restored = self._read(epoch, args)[name]
        if _sha256(restored) != self._info(epoch)["sha256"][name]:
            raise self._damaged(epoch, "its checksum differs")
        return restored

    def _read(self, epoch: int, args: Any) -> Any:
        try:
            return self._manager.restore(epoch, args=args)
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._damaged(epoch, type(error).__name__) from error

    def _damaged(self, epoch: int, why: str) -> VdError:
        return VdError(
            f"the checkpoint {self._folder / str(epoch)} is damaged ({why}); put a copy of "
            "it back, or train again with --fresh"
        )


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


def _sha256(tree: Any) -> str:
    """SHA-256 over the leaves' names, dtypes, shapes and bytes, in the tree's order."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _sha256_json(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
