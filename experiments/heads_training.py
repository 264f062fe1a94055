"""One training of the study `heads.py`: the whole training part, to the cosine's end."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from heads_lines import Setting
from heads_models import STATISTICS, PathsHead, fitted
from jaxtyping import Array, Float
from probe import mean_and_deviation

from vd.config import Config, DataConfig, ModelConfig, TrainingConfig
from vd.console import check_interrupt
from vd.data.manifest import Video
from vd.devices import own_numerics
from vd.models.head import Params
from vd.models.plugins import Plugins
from vd.models.pooling import mean_and_change_of
from vd.models.scoring import score
from vd.training.batches import training_batches
from vd.training.feature_set import FeatureSet
from vd.training.loop import begin
from vd.training.optimizer import learning_rates
from vd.training.step import (
    AXIS,
    Batch,
    StepNumbers,
    TrainState,
    make_step,
    step_numbers,
)

_BATCH = 32

Logits = Float[np.ndarray, " N"]


def test_logits(
    setting: Setting, data: FeatureSet, train: Sequence[Video], test: Sequence[Video],
    seed: int,
) -> Logits:  # fmt: skip
    """Train on one part and return the logits of another's clips, in its order."""
    if setting.C is not None:
        parts = data.part(train), data.part(test)
        return _probe_logits(setting, *parts)
    config, plugins = _config(setting, len(train), seed), _plugins(setting, data.dim)
    params = trained(setting, config, plugins, data.part(train))
    head = plugins.make_head(config.model)
    return score(head, params, data.part(test).in_order())


def _probe_logits(setting: Setting, train: FeatureSet, test: FeatureSet) -> Logits:
    """Logistic regression on standardised statistics over a clip's frames."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    statistics = mean_and_change_of if setting.change else mean_and_deviation
    x_train, x_test = (
        np.array([statistics(clip[0]) for clip in part.in_order()])
        for part in (train, test)
    )
    components = setting.components
    fewer = [PCA(components, svd_solver="full")] if components else []
    regression = LogisticRegression(C=setting.C, max_iter=1000)
    probe = make_pipeline(StandardScaler(), *fewer, regression)
    probe.fit(x_train, train.labels_N)
    logits: Logits = probe.decision_function(x_test)
    return logits


def _config(setting: Setting, clips: int, seed: int) -> Config:
    """Settings of vd for so many clips; alpha .5 throughout."""
    training = TrainingConfig(
        epochs=setting.epochs,
        batch_size=min(_BATCH, clips),
        learning_rate=setting.learning_rate,
        focal_alpha=0.5,
        temporal_jitter=setting.temporal_jitter,
        frame_dropping_rate=setting.frame_dropping_rate,
        mixup_alpha=setting.mixup_alpha,
        seed=seed,
    )
    model = ModelConfig(clip_frames=setting.clip_frames, mixed_precision=False)
    return Config(DataConfig(Path()), model=model, training=training)


def _plugins(setting: Setting, dim: int) -> Plugins:
    """The head of a setting; vd's own where it is no other."""
    if not (setting.linear or setting.standardised):
        return Plugins()
    names = "linear change recurrent standardised correction components input_dropout"
    own = {name: getattr(setting, name) for name in names.split()}
    return Plugins(head=partial(PathsHead, input_size=dim, **own))


@own_numerics()
def trained(
    setting: Setting, config: Config, plugins: Plugins, data: FeatureSet
) -> Params:
    """Parameters after the last epoch, or their average."""
    state = first_state(config, plugins, data)
    average = state.params
    settings = config.training
    per_epoch = len(data) // settings.batch_size
    rates = learning_rates(settings, per_epoch)
    step = _compiled_step(setting.changed(epochs=0), config.model, data.dim)
    numbers = step_numbers(config)
    batches = training_batches(
        data, settings, config.model.clip_frames, settings.batch_size, 0
    )
    for rate, batch in zip(rates, batches, strict=True):
        check_interrupt()
        now = numbers._replace(learning_rate=rate)
        state, average = step(state, average, batch, now)
    return average if setting.average_decay else state.params


def first_state(config: Config, plugins: Plugins, data: FeatureSet) -> TrainState:
    """The state before the first step, with the statistics of the training part."""
    state = begin(config, data.dim, plugins).state
    head = plugins.make_head(config.model)
    clips = [views[0] for views in data.in_order()]
    return state._replace(params=fitted(head, state.params, clips))


@cache
def _compiled_step(
    setting: Setting, model: ModelConfig, dim: int
) -> Callable[[TrainState, Params, Batch, StepNumbers], tuple[TrainState, Params]]:
    """vd's step, then what a setting does to its update, and the average of weights."""
    training = TrainingConfig(
        frame_dropping_rate=setting.frame_dropping_rate, mixup_alpha=setting.mixup_alpha
    )
    config = Config(DataConfig(Path()), model=model, training=training)
    step = make_step(config, _plugins(setting, dim))

    def run(
        state: TrainState, average: Params, batch: Batch, numbers: StepNumbers
    ) -> tuple[TrainState, Params]:
        after, _ = step(state, batch, numbers)
        params = jax.tree.map_with_path(
            partial(_regularised, setting, numbers.learning_rate),
            state.params, after.params,
        )  # fmt: skip
        count = after.step.astype(jnp.float32)
        decay = jnp.minimum(setting.average_decay, (1 + count) / (10 + count))
        average = jax.tree.map(
            lambda a, p: decay * a + (1 - decay) * p, average, params
        )
        return after._replace(params=params), average

    one = jax.local_devices()[:1]
    axes = None, None, 0, None
    return jax.pmap(run, AXIS, in_axes=axes, out_axes=None, devices=one)


def _regularised(
    setting: Setting, rate: Array, path: Any, before: Array, after: Array
) -> Array:
    """A parameter after a step: fixed ones stay, the detector's move and shrink by setting."""
    name = path[0].key
    if name in STATISTICS:
        return before
    if name != "detector" or not setting.linear:
        return after
    after = before + setting.detector_rate * (after - before)
    decay = setting.detector_decay if before.ndim > 1 else 0.0
    return after - rate * decay * before
