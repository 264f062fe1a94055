"""Which threshold to fit on few validation clips: four ways, judged on the folds' test parts.

    python experiments/threshold.py CROSSVAL [CROSSVAL …]

CROSSVAL is a folder that `vd crossval` wrote. Each member's threshold comes from its
validation part alone; the accuracy is over all members' test clips.

- half: 0.5, that is a logit of 0
- best: the logit of best balanced accuracy on validation, midway between two clips
- even: what the loss itself gives to a clip without information, whatever validation says
- vd: `vd.metrics.calibration.fit`, best balanced accuracy of smoothed logits, held near `even`

Source:   Scott, "Multivariate Density Estimation" (1992), for the width
Cost:     a second; the cross-validations are what takes time
Promised: nothing
Measured: docs/results.md
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float, Int

from vd.cli import run_command
from vd.evaluation.predictions import read_members, read_run
from vd.files import read_csv
from vd.metrics.calibration import fit
from vd.models.plugins import recorded_plugin
from vd.training.run_folder import read_config, read_settings


def best(logit_N: Float[np.ndarray, " N"], labels_N: Int[np.ndarray, " N"]) -> float:
    """The logit of best balanced accuracy; of several as good that nearest to 0."""
    scores = np.unique(logit_N)
    cuts = np.append((scores[1:] + scores[:-1]) / 2, 0.0)
    predicted = logit_N >= cuts[:, None]
    right = [np.mean(predicted[:, labels_N == c] == bool(c), axis=1) for c in (0, 1)]
    balanced = np.mean(right, axis=0)
    equal = cuts[balanced >= balanced.max() - 1e-12]
    return float(equal[np.argmin(np.abs(equal))])


def even(run_dir: Path) -> float:
    """The logit that the loss of a run gives to a clip without information."""
    from vd.models.losses import even_logit

    train = read_csv(run_dir / "splits.csv")
    labels = [row["label"] == "violent" for row in train if row["split"] == "train"]
    loss = recorded_plugin(read_config(run_dir), "loss")
    return even_logit(loss, read_settings(run_dir).training, float(np.mean(labels)))


def own_logit(
    logit_N: Float[np.ndarray, " N"], labels_N: Int[np.ndarray, " N"], even: float
) -> float:
    """The logit of vd's threshold."""
    fitted = fit(logit_N, labels_N, even)
    odds = fitted.threshold / (1 - fitted.threshold)
    return float(fitted.temperature * np.log(odds))


def main(crossvals: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> int:
    """Print a line a cross-validation."""
    for folder in crossvals:
        right: dict[str, list[bool]] = {"half": [], "best": [], "even": [], "vd": []}
        clips = 0
        for member in read_members(folder):
            val, test = (
                read_run(member.run_dir, name=part).predictions
                for part in ("val", "test")
            )
            clips += len(val.labels_N)
            own = even(member.run_dir)
            cuts = {
                "half": 0.0,
                "best": best(val.logit_N, val.labels_N),
                "even": own,
                "vd": own_logit(val.logit_N, val.labels_N, own),
            }
            for name, cut in cuts.items():
                right[name] += list((test.logit_N >= cut) == (test.labels_N == 1))
        members = len(read_members(folder))
        shares = ", ".join(f"{n} {100 * np.mean(r):.1f} %" for n, r in right.items())
        print(
            f"{folder.name}: {clips / members:.0f} validation clips a member: {shares}"
        )
    return 0


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
