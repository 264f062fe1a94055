"""A linear probe of the features that a run trains on: what its head has to beat.

Logistic regression on the mean and change of a clip over its stored frames, of the plain
view (docs/results.md, "Heads"). It is fitted on the clips that the run trains on. Temperature
and threshold come from the clips that calibrate the run: validation, or with --refit the same
inner folds. No test clip takes part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from scipy.special import expit, logit

from vd.config import Config
from vd.console import say
from vd.evaluation.evaluate import predicted, write_evaluation
from vd.evaluation.paired import auc_difference
from vd.evaluation.predictions import PROBE, read_run
from vd.metrics.binary import shown
from vd.metrics.calibration import Calibration, fit
from vd.training.feature_set import FeatureSet
from vd.training.refit import inner_folds
from vd.training.regression import fit_regression, pooled, regression_logits

_MOST_VALUES = 250_000_000  # of all clips together: 1 GB, up to three times that to fit


@dataclass(frozen=True)
class Probe:
    """A fitted probe and its calibration."""

    regression: Any  # scikit-learn's
    calibration: Calibration

    def logits(self, data: FeatureSet) -> Float64[np.ndarray, " N"]:
        """Raw logits of all clips, in their order."""
        return regression_logits(self.regression, pooled(data))


def evaluate_probe(
    config: Config, sets: Mapping[str, FeatureSet], adapted: bool = False
) -> dict[str, Any] | None:
    """Fit a probe beside the run and write its test figures; returns them.

    `sets` are those that the run was trained and tested with; its own test figures are
    written. `adapted`: the backbone has seen the training clips. With too many clips for
    its memory there is no probe: a line says so.
    """
    run_dir, test = config.run.checkpoint_dir, sets["test"]
    values = sum(map(len, sets.values())) * 2 * test.dim
    if values > _MOST_VALUES:
        say(
            f"no linear probe beside the model: it is for at most {_MOST_VALUES:,} values, "
            f"and these clips have {values:,}"
        )
        return None
    seed = config.splits.split_seed
    probe = fit_probe(sets["train"], sets.get("val"), seed, adapted)
    logit_N = probe.logits(test)
    model = read_run(run_dir).predictions  # of the same clips in the same order
    own = predicted(probe.calibration, test, logit_N)
    difference = auc_difference([own], [model], model.cluster_N)
    more = {
        "tta": False,
        "roc_auc_difference": difference["roc_auc_difference"],
        "roc_auc_difference_ci95": difference["roc_auc_difference_ci95"],
    }
    how = run_dir, "test", PROBE, more
    return write_evaluation(probe.calibration, test, logit_N, *how, draw=False)


def summary(result: Mapping[str, Any]) -> str:
    """Its evaluation in a sentence."""
    accuracy, area = (shown(name, result[name]) for name in ("accuracy", "roc_auc"))
    return f"a linear probe on the same features: accuracy {accuracy}, ROC AUC {area}"


def fit_probe(
    train: FeatureSet, val: FeatureSet | None, split_seed: int, adapted: bool = False
) -> Probe:
    """Fit on all clips of `train`; calibrate on `val`, or without it on inner folds.

    The inner folds are those of `--refit`; where there are too few groups for them, or the
    backbone was `adapted` on their clips, the temperature is 1 and the threshold that of
    the loss, as there.
    """
    x_NxP, labels_N = pooled(train), train.labels_N.astype(int)
    regression = fit_regression(x_NxP, labels_N)
    even = float(logit(np.mean(labels_N)))  # of a clip without information
    if val is not None:
        logit_N, source = regression_logits(regression, pooled(val)), "validation"
        labels_N = val.labels_N.astype(int)
    elif adapted:
        logit_N, source = np.zeros(0), ""
    else:
        logit_N, source = _out_of_fold(x_NxP, train, split_seed), "inner folds"
    if len(logit_N):
        calibration = fit(logit_N, labels_N, even, source)
    else:
        calibration = Calibration(1.0, float(expit(even)), "the loss's own threshold")
    return Probe(regression, calibration)


def _out_of_fold(
    x_NxP: Float32[np.ndarray, "N P"], train: FeatureSet, split_seed: int
) -> Float64[np.ndarray, " N"]:
    """Logits of each inner fold by a probe of the others; none without inner folds."""
    held = inner_folds(train.videos, split_seed)
    labels_N, place = train.labels_N.astype(int), _places(train)
    logit_N = np.zeros(len(train) if held else 0)
    for part in held:
        inside_N = np.zeros(len(train), bool)
        inside_N[[place[video.name] for video in part]] = True
        regression = fit_regression(x_NxP[~inside_N], labels_N[~inside_N])
        logit_N[inside_N] = regression_logits(regression, x_NxP[inside_N])
    return logit_N


def _places(data: FeatureSet) -> dict[str, int]:
    return {video.name: place for place, video in enumerate(data.videos)}
