"""Milliseconds a member-step when 1, 4 and 16 members of a sweep train as one program.

    python -m benchmarks.members

The detector as it is, batches of 64 clips × 32 frames × 2560 values on the devices
already, float32.
Each member is a thread that asks for its steps, as in `vd sweep`. `ours` is all members in
one program, `theirs` the same members one after the other, each alone in the program.
"""

import json
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import tyro

from vd.config import Config, DataConfig, ModelConfig, TrainingConfig
from vd.devices import training_devices
from vd.model import Detector, init_params
from vd.training.batches import Batch
from vd.training.lockstep import Lockstep
from vd.training.optimizer import learning_rate, make_optimizer
from vd.training.parts import BUILT_IN
from vd.training.step import TrainState

BATCH, FRAMES, DIM = 64, 32, 2560
STEPS_PER_EPOCH = 341


def main(
    members: tuple[int, ...] = (1, 4, 16), steps: int = 10, rounds: int = 5
) -> None:
    """A JSON line a number of members."""
    config = Config(DataConfig(Path()), model=ModelConfig(mixed_precision=False))
    devices = training_devices(None, BATCH)
    alone = Training(config, 1, devices, steps)
    for count in members:
        together = alone if count == 1 else Training(config, count, devices, steps)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(together.milliseconds())
            theirs.append(alone.milliseconds())
        line = {
            "benchmark": "members",
            "peer": "one_by_one",
            "members": count,
            "unit": "ms/member-step",
            "ours": round(median(ours), 3),
            "theirs": round(median(theirs), 3),
            "ratio": round(median(theirs) / median(ours), 3),
            "device": devices[0].device_kind,
        }
        print(json.dumps(line), flush=True)


class Training:
    """Members that differ in their seeds, compiled and ready to step."""

    def __init__(self, config: Config, count: int, devices: Any, steps: int) -> None:
        training = [TrainingConfig(seed=seed) for seed in range(count)]
        configs = {
            str(t.seed): Config(config.data, model=config.model, training=t)
            for t in training
        }
        lengths = dict.fromkeys(configs, STEPS_PER_EPOCH)
        self._lockstep = Lockstep(configs, lengths, BUILT_IN, devices)
        self._steps = steps
        params = init_params(Detector(config.model), DIM, jax.random.key(0))
        rate = learning_rate(config.training, STEPS_PER_EPOCH)
        moments = make_optimizer(config.training, rate).init(params)
        start = TrainState(np.zeros((), np.int32), params, moments)  # type: ignore[arg-type]  # as a checkpoint has it
        self._states = dict.fromkeys(configs, start)
        self._take = {name: self._lockstep.step_of(name) for name in configs}
        draw = np.random.default_rng(0)
        features = draw.normal(size=(BATCH, FRAMES, DIM)).astype(np.float16)
        mask = np.ones((BATCH, FRAMES), np.float32)
        labels = (np.arange(BATCH) % 2).astype(np.float32)
        arrays = features, mask, labels, np.arange(BATCH)
        over = (a.reshape(len(devices), -1, *a.shape[1:]) for a in arrays)
        self._batch = Batch(*map(jax.pmap(lambda a: a, devices=devices), over))
        self._lockstep.enter(configs)
        self.milliseconds()  # which compiles

    def milliseconds(self) -> float:
        """Time a member-step."""

        def train(name: str) -> None:
            for _ in range(self._steps):
                self._states[name], _ = self._take[name](
                    self._states[name], self._batch
                )

        threads = [threading.Thread(target=train, args=[name]) for name in self._take]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        jax.block_until_ready(self._states)
        return 1000 * (time.perf_counter() - began) / self._steps / len(threads)


if __name__ == "__main__":
    tyro.cli(main)
