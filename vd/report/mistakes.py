"""The mistakes of one model or several, the worst first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vd.data.manifest import CLASSES
from vd.evaluation.results import Member


@dataclass(frozen=True)
class Mistake:
    """A clip that was judged wrong: in `wrong` of `times` that it was tested."""

    name: str
    label: int
    group: str
    probability: float  # mean over the times that it was tested
    wrong: int
    times: int
    run_dir: Path  # of the first model that was wrong
    threshold: float  # its own

    @property
    def truth(self) -> str:
        """What it is."""
        return CLASSES[self.label]

    @property
    def distance(self) -> float:
        """How far the probability is from the truth."""
        return abs(self.probability - self.label)


def worst(members: Sequence[Member]) -> list[Mistake]:
    """All mistakes of the models, the worst first: wrong most often, then farthest off."""
    found: dict[str, list[tuple[Member, int, bool]]] = {}
    for member in members:
        said = member.predictions
        wrong_N = (said.probability_N >= member.threshold) != (said.labels_N == 1)
        for i, path in enumerate(said.paths):
            found.setdefault(path, []).append((member, i, bool(wrong_N[i])))
    made = []
    for path, tested in found.items():
        wrong = [member for member, _, is_wrong in tested if is_wrong]
        if wrong:
            member, i, _ = tested[0]
            each = [float(m.predictions.probability_N[k]) for m, k, _ in tested]
            label, group = member.predictions.labels_N[i], member.predictions.groups[i]
            made.append(
                Mistake(
                    path, int(label), group, float(np.mean(each)), len(wrong), len(tested),
                    wrong[0].run_dir, wrong[0].threshold,
                )
            )  # fmt: skip
    return sorted(made, key=lambda m: (-m.wrong / m.times, -m.distance, m.name))
