"""The page of a comparison: what `vd compare` says of the folders, in words and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vd.data.manifest import CLASSES
from vd.evaluation.compare import compare
from vd.evaluation.curves import curve
from vd.evaluation.pairing import Side, pair_clips, read_sides
from vd.files import read_json
from vd.report import pictures
from vd.report.page import page
from vd.report.settings import all_settings, command, crossval_command
from vd.report.words import Sentence
from vd.training.run_folder import read_config

_MOST_CLIPS = 20  # that two judge differently
_AGAIN = "run its vd crossval command again to write it again"


def comparison_page(folders: Sequence[Path]) -> str:
    """The page of two or more folders, each against the first.

    Raises `VdError` as `vd.evaluation.compare.compare` does.
    """
    result = compare(folders)
    sides = read_sides(folders)
    described = {s.name: read_config(s.members[0].run_dir) for s in sides}
    of = {s.name: curve([member.run_dir for member in s.members]) for s in sides}
    first_seeds = {s.name: next(iter(s.seeds.values())) for s in sides}
    return page(
        "comparison.html.j2",
        title=" and ".join(side.name for side in sides) + " compared",
        result=result,
        verdict=_verdict(result),
        curves=pictures.bands({name: rows for name, rows in of.items() if rows}),
        pictures=pictures.of_sides(first_seeds),
        differing=[_differing(sides[0], side) for side in sides[1:]],
        settings=_differing_settings(described),
        again={
            side.name: {
                "command": _command(side, described[side.name]),
                "described": described[side.name],
            }
            for side in sides
        },
    )


def _verdict(result: Mapping[str, Any]) -> list[Sentence]:
    """What vd compare says, sentence by sentence."""
    made = []
    for pair in result["comparisons"]:
        first, *others = pair["sentences"]
        made.append(Sentence("" if pair["shown"] else "Caution", f"{first}."))
        made += [Sentence("", f"{text[0].upper()}{text[1:]}.") for text in others]
    made += [Sentence("Warning", f"{text}.") for text in result["warnings"]]
    return made


def _differing(a: Side, b: Side) -> dict[str, Any]:
    """The clips of the first seed that one of the two alone judges right."""
    paired = pair_clips(a, b)
    right_a_N, right_b_N = paired.correct_a_KxN[0], paired.correct_b_KxN[0]
    p_a_N, p_b_N = paired.probability_a_KxN[0], paired.probability_b_KxN[0]
    paths = next(iter(a.seeds.values())).paths
    found = sorted(
        np.flatnonzero(right_a_N != right_b_N),
        key=lambda i: (-abs(p_a_N[i] - p_b_N[i]), paths[i]),
    )
    return {
        "a": a.name,
        "b": b.name,
        "seeds": len(a.seeds),
        "only_a": int(np.sum(right_a_N & ~right_b_N)),
        "only_b": int(np.sum(right_b_N & ~right_a_N)),
        "rows": [
            {
                "path": paths[i],
                "truth": CLASSES[paired.labels_N[i]],
                "probability_a": float(p_a_N[i]),
                "probability_b": float(p_b_N[i]),
                "right": a.name if right_a_N[i] else b.name,
            }
            for i in found[:_MOST_CLIPS]
        ],
    }


def _differing_settings(
    described: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, list[Any]]]:
    """The settings that are not the same in all folders, the place of the run apart."""
    tables = [all_settings(one) for one in described.values()]
    return [
        (row[0].flag, [setting.value for setting in row])
        for row in zip(*tables, strict=True)
        if row[0].name != "checkpoint_dir"
        and any(setting.value != row[0].value for setting in row)
    ]


def _command(side: Side, described: Mapping[str, Any]) -> str | None:
    """The command that gives a folder again."""
    made = command(described)
    if made is None or side.members[0].fold is None:
        return made
    values = read_json(side.folder / "crossval.json", _AGAIN)
    place = Path(described["settings"]["run"]["checkpoint_dir"]).parent
    return crossval_command(described, values, str(place))
