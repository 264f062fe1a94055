"""Loss, optimizer, schedule, early stopping and batches' draws, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vd.config import TrainingConfig
from vd.models.losses import (
    clip_losses,
    even_logit,
    focal_loss,
    imbalance_warning,
)
from vd.training.log import EarlyStopping
from vd.training.optimizer import learning_rates, make_optimizer, say_cut_warmup


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_focal_loss_by_hand_without_smoothing():
    made = focal_loss(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]), 0.25, 2.0)
    p = sigmoid(0.5)
    expected = [-0.25 * (1 - p) ** 2 * math.log(p), -0.75 * p**2 * math.log(1 - p)]
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_gamma_zero_alpha_half_is_half_cross_entropy():
    config = TrainingConfig(label_smoothing=0.1, focal_alpha=0.5, focal_gamma=0.0)
    logits, labels = jnp.array([-1.0, 2.0]), jnp.array([0.0, 1.0])
    expected = optax.sigmoid_binary_cross_entropy(logits, jnp.array([0.05, 0.95])) / 2
    np.testing.assert_allclose(
        clip_losses(None, logits, labels, config), expected, rtol=1e-5
    )


def test_the_losses_own_threshold_by_hand():
    def own(share, loss=None, **settings):
        return even_logit(loss, TrainingConfig(**settings), share)

    plain = {"focal_gamma": 0.0, "label_smoothing": 0.0}
    assert own(0.5, focal_alpha=0.5) == 0
    assert own(0.2, focal_alpha=0.5, **plain) == pytest.approx(
        math.log(1 / 4), abs=0.01
    )
    # weights as a share has them
    assert own(0.5, focal_alpha=0.2, **plain) == pytest.approx(
        math.log(1 / 4), abs=0.01
    )
    assert sigmoid(own(0.5)) == pytest.approx(
        0.40, abs=0.005
    )  # the recipe's alpha, gamma
    squared = own(0.5, lambda logits, targets: (logits - 3 * targets) ** 2, **plain)
    assert squared == pytest.approx(1.5, abs=0.01)
    assert own(0.5, lambda logits, targets: 0 * logits) == 0  # a loss that says nothing


@pytest.mark.parametrize(
    ("violent", "nonviolent", "alpha", "warned"),
    [
        (100, 100, 0.25, True),
        (100, 100, 0.5, False),
        (300, 100, 0.25, False),
        (67, 33, 0.5, True),
    ],
)
def test_imbalance(violent, nonviolent, alpha, warned):
    assert (imbalance_warning(violent, nonviolent, alpha) is not None) == warned


def test_schedule_rises_to_the_peak_and_ends_at_zero():
    config = TrainingConfig(epochs=10, warmup_epochs=2, learning_rate=0.5)
    rates = learning_rates(config, steps_per_epoch=5)
    assert len(rates) == 50
    assert rates[[0, 5, 10]] == pytest.approx([0.0, 0.25, 0.5])
    assert rates[30] == pytest.approx(0.25)  # half of the cosine
    assert rates[49] == pytest.approx(
        0.25 * (1 + math.cos(math.pi * 39 / 40)), rel=1e-4
    )


def test_a_warmup_as_long_as_the_run_is_cut_and_said(capsys):
    config = TrainingConfig(epochs=1, warmup_epochs=5, learning_rate=0.5)
    rates = learning_rates(config, steps_per_epoch=10)
    assert rates[2] == pytest.approx(0.5)
    assert capsys.readouterr().err == ""
    say_cut_warmup(config, steps_per_epoch=10)
    assert "--warmup-epochs 5" in capsys.readouterr().err


def test_decay_shrinks_matrices_and_leaves_biases():
    config = TrainingConfig(weight_decay=0.1, learning_rate=0.01)
    optimizer = make_optimizer(config)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved["kernel"], 1 - 0.01 * 0.1)
    np.testing.assert_allclose(moved["bias"], 1)


@pytest.mark.parametrize(
    ("limit", "factor"), [(1.0, 1 / 50), (49.0, 0.98), (50.0, 1), (60.0, 1), (0.0, 1)]
)
def test_gradients_are_clipped_by_their_global_norm(limit, factor):
    """Of 3-4-5 by hand, and as optax does; one that needs no clipping keeps its bits."""
    config = TrainingConfig(grad_clip_norm=limit, learning_rate=0.1)
    optimizer = make_optimizer(config)
    params = {"w": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    grads = {"w": jnp.array([[30.0, 0.0]]), "b": jnp.array([40.0])}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")  # 0.1 × the clipped gradient
    np.testing.assert_allclose(first_moment["w"], [[3 * factor, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(first_moment["b"], [4 * factor], rtol=1e-5)
    plain = optax.chain(
        optax.clip_by_global_norm(limit or np.inf),
        optax.adamw(0.1, weight_decay=config.weight_decay),
    )
    _, theirs = plain.update(grads, plain.init(params), params)
    for name, moment in optax.tree.get(theirs, "mu").items():
        rounding = 0 if limit in (0.0, 60.0) else 1e-6
        np.testing.assert_allclose(first_moment[name], moment, rtol=rounding)


def run_stopping(values, **settings):
    stopping = EarlyStopping(**{"metric": "val_loss", "patience": 2, **settings})
    for epoch, value in enumerate(values, start=1):
        stopping = stopping.update(epoch, value)
        if stopping.stops:
            break
    return stopping


def test_stops_after_patience_and_keeps_the_earlier_of_a_tie():
    stopping = run_stopping([3.0, 1.0, 1.0, 2.0, 0.5])
    assert (stopping.best_epoch, stopping.epoch, stopping.stops) == (2, 4, True)


def test_accuracy_is_better_when_larger_and_undefined_never_wins():
    stopping = run_stopping([None, 0.5, 0.7, None], metric="val_roc_auc", patience=9)
    assert (stopping.best_epoch, stopping.best_value) == (3, 0.7)


def test_a_metric_has_its_own_direction():
    falling = [0.3, 0.2, 0.25]
    assert run_stopping(falling, metric="val_brier").best_epoch == 2
    assert run_stopping(falling, metric="val_recall_violent").best_epoch == 1


def test_min_delta_asks_for_more():
    assert run_stopping([1.0, 0.95], min_delta=0.1).best_epoch == 1
