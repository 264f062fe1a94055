"""Loss, optimizer, schedule, early stopping and batches' draws, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vd.config import TrainingConfig
from vd.models.losses import clip_losses, even_logit, focal_loss, imbalance_warning
from vd.training.log import EarlyStopping
from vd.training.optimizer import learning_rates, make_optimizer


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


QUARTER = math.log(1 / 4)
PLAIN = {"focal_gamma": 0.0, "label_smoothing": 0.0}


@pytest.mark.parametrize(
    ("share", "loss", "settings", "expected"),
    [
        (0.5, None, {"focal_alpha": 0.5}, 0.0),
        (0.2, None, {"focal_alpha": 0.5, **PLAIN}, QUARTER),
        (0.5, None, {"focal_alpha": 0.2, **PLAIN}, QUARTER),  # weights, as a share has
        (0.5, None, {}, math.log(0.4 / 0.6)),  # the recipe's alpha and gamma
        (0.5, lambda logits, targets: (logits - 3 * targets) ** 2, PLAIN, 1.5),
        (0.5, lambda logits, targets: 0 * logits, {}, 0.0),  # a loss that says nothing
    ],
)
def test_the_losses_own_threshold_by_hand(share, loss, settings, expected):
    logit = even_logit(loss, TrainingConfig(**settings), share)
    assert logit == pytest.approx(expected, abs=0.02 if expected else 0)


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
    assert learning_rates(config, steps_per_epoch=10)[2] == pytest.approx(0.5)
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
    """Of 3-4-5 by hand."""
    config = TrainingConfig(grad_clip_norm=limit, learning_rate=0.1)
    optimizer = make_optimizer(config)
    params = {"w": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    grads = {"w": jnp.array([[30.0, 0.0]]), "b": jnp.array([40.0])}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")  # 0.1 × the clipped gradient
    np.testing.assert_allclose(first_moment["w"], [[3 * factor, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(first_moment["b"], [4 * factor], rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "settings", "best", "last"),
    [
        ([3.0, 1.0, 1.0, 2.0, 0.5], {}, 2, 4),  # patience ends; a tie is no gain
        ([None, 0.5, 0.7, None], {"metric": "val_roc_auc"}, 3, 4),
        ([0.3, 0.2, 0.25], {"metric": "val_brier"}, 2, 3),
        ([0.3, 0.2, 0.25], {"metric": "val_recall_violent"}, 1, 3),
        ([1.0, 0.95], {"min_delta": 0.1}, 1, 2),
    ],
)
def test_early_stopping_keeps_the_best_epoch(values, settings, best, last):
    stopping = EarlyStopping(**{"metric": "val_loss", "patience": 2, **settings})
    for epoch, value in enumerate(values, start=1):
        stopping = stopping.update(epoch, value)
        if stopping.stops:
            break
    assert (stopping.best_epoch, stopping.epoch) == (best, last)
