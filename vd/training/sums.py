"""Running sums of an epoch's steps."""

from dataclasses import dataclass


@dataclass
class EpochSums:
    """What is done of an epoch; a checkpoint within an epoch keeps it."""

    steps: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    grad_norm: float = 0.0
    clipped: int = 0  # steps whose gradient was
    waited: float = 0.0  # seconds that the steps waited for their batches
    seconds: float = 0.0

    def add(
        self, loss: float, accuracy: float, grad_norm: float, clip_norm: float
    ) -> None:
        """Take in one step's means over its batch; clipping is above `clip_norm`, 0: never."""
        self.steps += 1
        self.loss += loss
        self.accuracy += accuracy
        self.grad_norm += grad_norm
        self.clipped += 0 < clip_norm < grad_norm

    def row(self, batch_size: int) -> dict[str, float]:
        """The epoch's means, all batches being of one size, and its speed."""
        return {
            "train_loss": self.loss / self.steps,
            "train_accuracy": self.accuracy / self.steps,
            "grad_norm": self.grad_norm / self.steps,
            "clipped_fraction": self.clipped / self.steps,
            "videos_per_second": self.steps * batch_size / self.seconds,
            "input_wait_fraction": self.waited / self.seconds,
        }
