"""Milliseconds a member-step of a sweep whose members train as one program, or in turn.

    python -m benchmarks.members --folder SCRATCH

Synthetic records of real shape in the real store, the detector as it is, batches of 64,
float32: each member is an ordinary run in a thread of its own, as in `vd sweep`, with its
batches, validation and checkpoints, in `epochs` epochs. `ours` is `together` members at
once, `theirs` the same number in turn; those in turn and those together alternate.
"""

import json
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median

import tyro

from benchmarks.scratch import scratch
from benchmarks.store import fill, open_store
from vd.config import Config, DataConfig, ModelConfig, TrainingConfig
from vd.data.manifest import Video
from vd.devices import training_devices
from vd.models.parts import BUILT_IN
from vd.sweep import Run, train_members
from vd.training.feature_set import TRAINED_SHARE, FeatureSet
from vd.training.lockstep import Lockstep
from vd.training.opening import Opened

BATCH = 64


def main(
    folder: Path,
    together: tuple[int, ...] = (2, 4, 8),
    videos: int = 1280,
    validation: int = 256,
    epochs: int = 2,
    rounds: int = 3,
) -> None:
    """A JSON line a number of members; what is written into `folder` is removed at the end."""
    with scratch(folder):
        store = open_store(folder)
        names = [f"{i:064x}" for i in range(videos + validation)]
        fill(store, names)
        made = [Video(Path(n), n, i % 2, "", "", n) for i, n in enumerate(names)]
        devices = training_devices(None, BATCH)
        everything = FeatureSet(made, store, devices, TRAINED_SHARE)
        sets = {
            "train": everything.part(made[validation:]),
            "val": everything.part(made[:validation]),
        }
        sweep = Sweep(folder, sets, Opened(BATCH, devices), epochs)
        for number in together:
            (
                sweep.milliseconds(number, 1),
                sweep.milliseconds(number, number),
            )  # compiles
            times = [
                (sweep.milliseconds(number, number), sweep.milliseconds(number, 1))
                for _ in range(rounds)
            ]
            ours, theirs = map(median, zip(*times, strict=True))
            line = {
                "benchmark": "members",
                "peer": "in_turn",
                "members": number,
                "unit": "ms/member-step",
                "ours": round(ours, 3),
                "theirs": round(theirs, 3),
                "ratio": round(theirs / ours, 3),
                "device": devices[0].device_kind,
            }
            print(json.dumps(line), flush=True)


class Sweep:
    """Members that differ in their seeds."""

    def __init__(
        self, folder: Path, sets: dict[str, FeatureSet], opened: Opened, epochs: int
    ) -> None:
        self._folder, self._sets, self._opened = folder, sets, opened
        training = TrainingConfig(epochs=epochs, warmup_epochs=0)
        model = ModelConfig(mixed_precision=False)
        self._config = Config(DataConfig(folder), model=model, training=training)
        self._steps = len(sets["train"]) // BATCH
        self._numbers = count()
        self._programs: dict[int, Lockstep] = {}

    def milliseconds(self, members: int, at_once: int) -> float:
        """Time a member-step when so many train, `at_once` together."""
        groups = [range(begin, begin + at_once) for begin in range(0, members, at_once)]
        program = self._programs.get(members) or self._program(members)
        began = time.perf_counter()
        for seeds in groups:
            runs = {str(seed): self._run(seed) for seed in seeds}
            _, errors = train_members(BUILT_IN, runs, program)
            if errors:
                raise next(iter(errors.values()))
        steps = members * self._steps * self._config.training.epochs
        return 1000 * (time.perf_counter() - began) / steps

    def _program(self, members: int) -> Lockstep:
        """The program of all members, kept: JAX compiles it once a number at once."""
        configs = {str(seed): self._run(seed).config for seed in range(members)}
        lengths = dict.fromkeys(configs, self._steps)
        made = Lockstep(configs, lengths, BUILT_IN, self._opened.devices)
        self._programs[members] = made
        return made

    def _run(self, seed: int) -> Run:
        """A member in a folder of its own."""
        run_dir = self._folder / "runs" / str(next(self._numbers))
        run_dir.mkdir(parents=True)
        config = self._config
        training = replace(config.training, seed=seed)
        run = replace(config.run, checkpoint_dir=run_dir)
        return Run(
            replace(config, training=training, run=run), self._sets, self._opened
        )


if __name__ == "__main__":
    tyro.cli(main)
