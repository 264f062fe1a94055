"""Manual early stopping on a validation metric."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class EarlyStopping:
    """The best epoch so far. Kept in every checkpoint, so a resumed run stops alike."""

    metric: str
    patience: int
    min_delta: float = 0.0
    best_epoch: int = 0  # epochs count from 1; 0: none yet
    best_value: float = math.nan
    epoch: int = 0

    def update(self, epoch: int, value: float | None) -> "EarlyStopping":
        """Take in an epoch's value; a tie, and an undefined value, keep the earlier best."""
        gain = 0.0 if value is None else value - self.best_value
        if self.metric == "val_loss":
            gain = -gain
        better = value is not None and (self.best_epoch == 0 or gain > self.min_delta)
        if better:
            assert value is not None
            return replace(self, epoch=epoch, best_epoch=epoch, best_value=value)
        return replace(self, epoch=epoch)

    @property
    def stops(self) -> bool:
        """Whether `patience` epochs have passed without a better one."""
        return self.epoch - self.best_epoch >= self.patience
