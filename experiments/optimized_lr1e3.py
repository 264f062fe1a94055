"""The optimized recipe with learning rate 0.001 after 10 epochs of warmup.

    python experiments/optimized_lr1e3.py --dataset-path DATA --cache-dir CACHE --checkpoint-dir RUN

Source:   the recipe's variant with a longer warmup
Promised: as good as `optimized.py`
Measured: docs/claims.md
"""

from vd.cli import experiment
from vd.config import TrainingConfig

if __name__ == "__main__":
    experiment(
        __doc__,
        training=TrainingConfig(learning_rate=0.001, warmup_epochs=10),
    )
