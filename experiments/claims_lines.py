"""The lines of claims.jsonl: read back, each checked, and all of a data set against the first."""

import json
import math
from pathlib import Path
from typing import Any

from vd.errors import VdError
from vd.files import write_bytes

FIGURES = "accuracy", "recall_violent", "recall_nonviolent", "roc_auc", "ece", "brier"
_MEMBER = "fold", "n_train", "threshold", "best_epoch", "last_epoch", "clipped"
_HALF = "accuracy", "recall_violent"

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """The finished cells; a last line that a kill cut is dropped, from the file too.

    Raises `VdError` for a line that is damaged, repeats a cell or fits no other.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_bytes(path, whole)
    lines: list[Line] = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            _check(line)
            _check_beside(line, lines)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise VdError(
                f"{path}, line {number} is damaged ({error!r}); delete that line, and "
                "its cell is run again if no other line has it."
            ) from error
        lines.append(line)
    return lines


def _check(line: Line) -> None:
    """Raise unless a line has what the table is made of, and its parts fit each other."""
    clips, correct = line["clips"], line["correct"]
    if {len(line["clusters"]), *map(len, correct)} != {len(clips)}:
        raise ValueError("its clips, groups and bits differ in number")
    if set("".join(correct)) - set("01"):
        raise ValueError("its bits are not 0 or 1")
    right = [0] * len(correct)
    seeds = sorted({row["seed"] for row in line["members"]})
    for row in line["members"]:
        right[seeds.index(row["seed"])] += round(row["accuracy"] * row["n"])
        _ = [float(row[key]) for key in _MEMBER]
    if right != [bits.count("1") for bits in correct]:
        raise ValueError("its members are not right on as many clips as its bits")
    mean = sum(right) / len(right) / len(clips)
    if not math.isclose(line["accuracy"]["mean"], mean):
        raise ValueError("its accuracy is not that of its bits")
    _ = [float(line[name]["mean"]) for name in FIGURES]
    _ = [float(half[key]) for half in line["at_half"] for key in _HALF]
    _ = dict(line["settings"]), line["groups"]
    if not (isinstance(line["dataset"], str) and isinstance(line["cell"], str)):
        raise TypeError("its data set or cell is no name")


def _check_beside(line: Line, others: list[Line]) -> None:
    """Raise unless a line is another cell of the same clips, folds and seeds."""
    own = [other for other in others if other["dataset"] == line["dataset"]]
    if line["cell"] in [other["cell"] for other in own]:
        raise ValueError(f"it repeats the cell {line['cell']} on {line['dataset']}")
    folds = [{(row["fold"], row["seed"]) for row in o["members"]} for o in (line, *own)]
    if own and (own[0]["clips"] != line["clips"] or folds[0] != folds[1]):
        raise ValueError("it tested other clips, folds or seeds than the lines above")
