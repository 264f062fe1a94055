"""The recipe, original: learning rate 0.001, 100 epochs, patience 10.

    python experiments/original.py --dataset-path DATA --cache-dir CACHE --checkpoint-dir RUN

Source:   the recipe's first form
Promised: the baseline; the recipe promises that the others are better
Measured: docs/claims.md
"""

from vd.cli import experiment
from vd.config import TrainingConfig

if __name__ == "__main__":
    experiment(
        __doc__,
        training=TrainingConfig(
            learning_rate=0.001, epochs=100, early_stopping_patience=10
        ),
    )
