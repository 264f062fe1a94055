"""The optimized recipe with the best epoch chosen by ROC AUC, and inner folds for few clips.

    python experiments/recommended.py --dataset-path DATA --cache-dir CACHE --checkpoint-dir RUN

The recipe chooses the epoch by validation loss, which on few clips is least where the model
leans to one class. Below 2,000 clips or 50 groups inner folds choose the length of training
instead, and all training and validation clips are trained on (`--refit`).

Source:   docs/claims.md and docs/results.md, cross-validations on SCFD
Promised: nothing
Measured: docs/results.md
"""

from vd.cli import experiment
from vd.config import TrainingConfig

if __name__ == "__main__":
    experiment(
        __doc__,
        training=TrainingConfig(early_stopping_metric="val_roc_auc", refit_if_few=True),
    )
