"""Surveillance Camera Fight Dataset: 300 clips of 2 s, balanced, from 36 sources and more.

    python experiments/scfd.py --dataset-path scfd/manifest.csv --cache-dir CACHE --checkpoint-dir RUN

Source:   Aktı, Tataroğlu, Ekenel, "Vision-based Fight Detection from Surveillance
          Cameras" (2019); give groups (source recordings): without them clips of one
          recording are in train and test
Promised: nothing; 76.7 % is the best published with folds grouped by source, 92 % and more
          with random folds
Measured: docs/results.md
"""

from vd.cli import experiment
from vd.config import ModelConfig, TrainingConfig

if __name__ == "__main__":
    experiment(
        __doc__,
        model=ModelConfig(mixed_precision=False),
        training=TrainingConfig(epochs=60, batch_size=32, focal_alpha=0.5),
    )
