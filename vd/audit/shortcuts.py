"""Shortcuts: how well the label is predicted without looking at what happens in a video.

A small classifier is cross-validated, groups kept whole, on metadata, on a single frame and
on the borders of that frame. Its AUC is compared with that under permuted labels; whole
groups are permuted, so that the clips of a group stay together.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vd.console import track
from vd.data.fingerprints import Fingerprint
from vd.data.manifest import CLASSES, Video
from vd.data.outcome import Outcome
from vd.features.engines import Engine

Features = Float[np.ndarray, "N D"]
Labels = Int[np.ndarray, " N"]

_FOLDS, _COMPONENTS = 5, 32
_BORDER = 0.15  # of the side, on each side

# metadata predict by thresholds, not by sums
METADATA_MODEL = ExtraTreesClassifier(25, min_samples_leaf=3, random_state=0)
PICTURE_MODEL = make_pipeline(  # for principal components
    StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)
)


def shortcut(
    model: Any,
    features_NxD: Features,
    labels_N: Labels,
    groups_N: Labels,
    permutations: int = 99,
) -> dict[str, Any]:
    """Cross-validate `model` on the labels and on permutations of them.

    Returns the out-of-fold `auc`; `chance_95`, below which 95 % of the permutations stay;
    `p`, the share of permutations, and of the labels themselves, that reach the AUC.
    Both classes must lie in two groups at least (`fewest_groups`).
    """
    folds = min(_FOLDS, fewest_groups(labels_N, groups_N))
    generator = np.random.Generator(np.random.Philox(0))
    auc = _auc(model, features_NxD, labels_N, groups_N, folds)
    chance = []
    with track("permuted labels", permutations, "fits") as ticker:
        for _ in range(permutations):
            other_N = permuted(labels_N, groups_N, generator)
            chance.append(_auc(model, features_NxD, other_N, groups_N, folds))
            ticker.advance()
    reached = 1 + sum(value >= auc for value in chance)
    return {
        "auc": auc,
        "chance_95": float(np.quantile(chance, 0.95)),
        "p": reached / (permutations + 1),
        "clips": len(labels_N),
    }


def fewest_groups(labels_N: Labels, groups_N: Labels) -> int:
    """Groups of the class that lies in fewer of them; two are needed to hold one out."""
    return min(len(set(groups_N[labels_N == label])) for label in (0, 1))


def permuted(
    labels_N: Labels, groups_N: Labels, generator: np.random.Generator
) -> Labels:
    """The labels of whole groups in another order, filled in group by group."""
    names = np.unique(groups_N)
    members = {name: np.flatnonzero(groups_N == name) for name in names}
    places = np.concatenate([members[name] for name in names])
    sources = np.concatenate([members[name] for name in generator.permutation(names)])
    result = np.empty_like(labels_N)
    result[places] = labels_N[sources]
    return result


def metadata(
    videos: Sequence[Video],
    outcomes: Sequence[Outcome],
    fingerprints: Sequence[Fingerprint],
) -> Features:
    """Resolution, rate, length, size, bit rate, brightness, letterbox and codec."""
    rows = []
    codecs = sorted({outcome.codec for outcome in outcomes})
    for video, outcome, fingerprint in zip(videos, outcomes, fingerprints, strict=True):
        seconds = max(outcome.duration, 1e-3)
        rows.append(
            [
                outcome.width, outcome.height, outcome.fps, outcome.frames, seconds,
                video.size, 8 * video.size / seconds, fingerprint.brightness,
                fingerprint.letterbox, *(outcome.codec == codec for codec in codecs),
            ]
        )  # fmt: skip
    return np.array(rows, np.float64)


def picture_features(
    pictures: Sequence[bytes], engine: Engine, size: int
) -> tuple[Features, Features]:
    """Principal components of the backbone's features of pictures, and of their borders.

    A picture is a JPEG; its borders are a rim of 15 % of the side, and the rest is grey.
    """
    wholes, borders = [], []
    rim = max(1, round(_BORDER * size))
    with track("middle frames", len(pictures), "pictures") as ticker:
        for picture in pictures:
            image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB)
            assert image is not None  # a JPEG that we wrote
            image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
            wholes.append(engine(image[None])[0])
            image[rim:-rim, rim:-rim] = 127
            borders.append(engine(image[None])[0])
            ticker.advance()
    whole_NxD, border_NxD = np.array(wholes, float), np.array(borders, float)
    pca = PCA(min(_COMPONENTS, *whole_NxD.shape), random_state=0)
    return pca.fit_transform(whole_NxD), pca.fit_transform(border_NxD)


def one_class_groups(videos: Sequence[Video]) -> list[dict[str, Any]]:
    """Groups of two or more clips of a single class, the least likely by chance first.

    `p` is the chance that as many clips drawn from the data set are of that class, times
    the number of groups (Bonferroni).
    """
    labels: dict[str, list[int]] = defaultdict(list)
    for video in videos:
        if video.group:
            labels[video.group].append(video.label)
    violent = sum(video.label for video in videos) / max(len(videos), 1)
    share = 1 - violent, violent
    rows = [
        {
            "group": group,
            "label": CLASSES[members[0]],
            "clips": len(members),
            "p": min(1.0, len(labels) * share[members[0]] ** len(members)),
        }
        for group, members in labels.items()
        if len(members) > 1 and len(set(members)) == 1
    ]
    return sorted(rows, key=lambda row: (row["p"], row["group"]))


def _auc(
    model: Any, features_NxD: Features, labels_N: Labels, groups_N: Labels, folds: int
) -> float:
    """AUC of out-of-fold scores: 0.5 in a fold whose training part has one class."""
    scores_N = np.full(len(labels_N), 0.5)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for train, test in splitter.split(features_NxD, labels_N, groups_N):
        if len(set(labels_N[train])) == 2:
            model.fit(features_NxD[train], labels_N[train])
            scores_N[test] = model.predict_proba(features_NxD[test])[:, 1]
    return float(roc_auc_score(labels_N, scores_N))
