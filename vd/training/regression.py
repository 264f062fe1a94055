"""Logistic regression on the mean and change of each clip over its stored frames.

It is the linear probe beside every run (`vd.evaluation.probe`), and the part of an adapted
run that reads the frozen network (`vd.training.readout`).
"""

from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from vd.console import track
from vd.models.pooling import mean_and_change_of
from vd.training.feature_set import FeatureSet

_C = 0.01  # inverse L2 penalty, chosen before the first run; 0.001 to 1 do as well


def pooled(data: FeatureSet, first: int = 0) -> Float32[np.ndarray, "N P"]:
    """`mean_and_change_of` each clip over the frames of its plain view.

    Of the D features of a frame those from `first` on, so P = 2 (D − first).
    """
    x_NxP = np.empty((len(data), 2 * (data.dim - first)), np.float32)
    with track("linear probe", len(data), "clips") as ticker:
        for x_P, (plain_FxD,) in zip(x_NxP, data.in_order(), strict=True):
            x_P[:] = mean_and_change_of(plain_FxD[:, first:])
            ticker.advance()
    return x_NxP


def fit_regression(
    x_NxP: Float32[np.ndarray, "N P"], labels_N: Int[np.ndarray, " N"]
) -> Any:
    """Logistic regression on standardised columns: scikit-learn's pipeline of two."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    regression = make_pipeline(
        StandardScaler(), LogisticRegression(C=_C, max_iter=1000)
    )
    with threadpool_limits(1):  # the same bits on any number of cores
        return regression.fit(x_NxP, labels_N)


def regression_logits(
    regression: Any, x_NxP: Float32[np.ndarray, "N P"]
) -> Float64[np.ndarray, " N"]:
    """Raw logits of rows."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        logit_N: np.ndarray = regression.decision_function(x_NxP)
    return logit_N.astype(np.float64)


def weights_and_bias(regression: Any) -> tuple[Float64[np.ndarray, " P"], float]:
    """The regression as one linear map of columns that are not standardised."""
    scaler, logistic = regression[0], regression[1]
    weight_P = logistic.coef_[0].astype(np.float64) / scaler.scale_
    return weight_P, float(logistic.intercept_[0] - weight_P @ scaler.mean_)
