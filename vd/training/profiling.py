"""`--profile`: a JAX trace of some training steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from vd.console import say
from vd.training.step import StepMetrics, TrainState, TrainStep

_SKIPPED = 2  # steps of a process; the first compiles
_TRACED = 10


@contextmanager
def profiling(step: TrainStep, folder: Path | None) -> Iterator[TrainStep]:
    """Yield `step`; with a folder, calls 3 to 12 of it are traced, and what is between them."""
    if folder is None:
        yield step
        return
    calls, tracing = 0, False
    metrics: StepMetrics | None = None

    def stop() -> None:
        nonlocal tracing
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
        tracing = False
        say(f"the trace of {calls - _SKIPPED} steps is in {folder}; xprof shows it")

    def run(*arguments: Any) -> tuple[TrainState, StepMetrics]:
        nonlocal calls, tracing, metrics
        calls += 1
        if calls == _SKIPPED + 1:
            jax.profiler.start_trace(folder)
            tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=calls):
            state, metrics = step(*arguments)
        if calls == _SKIPPED + _TRACED:
            stop()
        return state, metrics

    try:
        yield run
    finally:
        if tracing:
            stop()
        elif calls <= _SKIPPED:
            say(f"warning: {calls} steps are too few for --profile; train longer")
