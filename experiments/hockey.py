"""Hockey Fight Dataset: 1,000 clips of 1.6 s of ice hockey, balanced.

    python experiments/hockey.py --dataset-path hockey/manifest.csv --cache-dir CACHE --checkpoint-dir RUN

Source:   Bermejo Nievas et al., "Violence Detection in Video Using Computer Vision
          Techniques" (2011); it has no source information, so clips of one game may be
          in train and test
Promised: nothing; figures above 95 % are common, with that fault in all of them
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
