"""Quickstart: rendered clips, real features, a trained and evaluated detector.

    python experiments/quickstart.py

Needs no data. Two drawn figures stand, wave, strike and dodge; whether a clip is violent
shows in how they move, never in a single frame, brightness, length, size or frame rate.
Cost:     under three minutes on two cores
Promised: above 90 % test accuracy; chance with shuffled labels (tests/test_quickstart.py)
Measured: docs/results.md
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vd.cli import Train, experiment
from vd.config import DataConfig, ModelConfig, RunConfig, TrainingConfig

ROOT = Path("runs/quickstart")
CLIPS = {"train": 72, "val": 32, "test": 48}
TRAINING = TrainingConfig(
    epochs=20, batch_size=32, focal_alpha=0.5, early_stopping_patience=5
)


@dataclass(frozen=True)
class Quickstart(Train):
    """Train on rendered clips, which are made when they are not there."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(ROOT / "clips", ROOT / "cache")
    )
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(mixed_precision=False)
    )
    training: TrainingConfig = field(default_factory=lambda: TRAINING)
    run: RunConfig = field(default_factory=lambda: RunConfig(ROOT / "run"))
    render_seed: int = 0
    """Seed of the rendered clips."""

    def __call__(self, **parts: Any) -> int:
        """Render, train and evaluate, then draw violence over time in a longer video."""
        from rendering.clips import render_dataset, render_episode
        from rendering.timeline import draw_timeline

        from vd.console import say

        render_dataset(self.data.dataset_path, clips=CLIPS, seed=self.render_seed)
        code = super().__call__(**parts)
        video, picture = ROOT / "episode.mp4", self.run.checkpoint_dir / "timeline.png"
        if not picture.exists():
            spans = render_episode(
                video, calm_seconds=3.0, violent_seconds=3.0, seed=self.render_seed
            )
            draw_timeline(self.run.checkpoint_dir, video, picture, spans)
            say(f"violence over time in {video}: {picture}")
        return code


if __name__ == "__main__":
    experiment(__doc__, Quickstart)
