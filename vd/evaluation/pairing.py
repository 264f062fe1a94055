"""Clips of two runs or cross-validations paired, or refused when they are not the same."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from vd.errors import VdError
from vd.evaluation.results import Member, Pooled, pooled_by_seed, read_results


class Side(NamedTuple):
    """One run or cross-validation."""

    name: str
    folder: Path
    members: list[Member]
    seeds: dict[int, Pooled]


def read_sides(folders: Sequence[Path]) -> list[Side]:
    """What the folders hold, each under a name of its own."""
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise VdError("vd compare was given one folder twice; name each once.")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    sides = []
    for name, folder in zip(names, folders, strict=True):
        members = read_results(folder)
        sides.append(Side(name, folder, members, pooled_by_seed(members)))
    return sides


def check_paired(a: Side, b: Side) -> None:
    """Raise `VdError` unless both tested the same clips, in the same folds and seeds."""
    remedy = "compare what was tested on the same clips, with the same splits"
    folds = [side.members[0].fold is not None for side in (a, b)]
    if folds[0] != folds[1]:
        raise VdError(
            f"one of {a.folder} and {b.folder} is a run and the other a cross-validation; "
            "compare two of a kind."
        )
    if folds[0] and list(a.seeds) != list(b.seeds):
        raise VdError(
            f"{a.folder} has the seeds {list(a.seeds)} and {b.folder} {list(b.seeds)}; run "
            "vd crossval with the same --seeds."
        )
    one, other = next(iter(a.seeds.values())), next(iter(b.seeds.values()))
    first, second = _keys(one, other)
    counts, others = Counter(first), Counter(second)
    odd = (counts - others) + (others - counts)
    if odd:
        paths = dict(zip(first + second, one.paths + other.paths, strict=True))
        raise VdError(
            f"{a.folder} and {b.folder} were tested on different clips ({odd.total()} are in "
            f"one of them only, {paths[min(odd)]!r} for one); {remedy}."
        )
    order = _order(other, first, second)
    for words, values in (("another label", "labels_N"), ("another fold", "fold_N")):
        mine, theirs = getattr(one, values), getattr(other, values)[order]
        if (mine != theirs).any():
            path = one.paths[int(np.argmax(mine != theirs))]
            raise VdError(
                f"{path!r} has {words} in {b.folder} than in {a.folder}; {remedy}."
            )


def _keys(one: Pooled, other: Pooled) -> tuple[list[str], list[str]]:
    """What clips are paired by: their content where it is known, else their paths."""
    if all(one.ids) and all(other.ids):
        return one.ids, other.ids
    return one.paths, other.paths


def _order(
    other: Pooled, first: Sequence[str], second: Sequence[str]
) -> Shaped[np.ndarray, " N"]:
    """The places of the other's clips in the order of the one's; copies in order of path."""
    places: dict[str, list[int]] = {}
    for place in sorted(range(len(second)), key=lambda i: other.paths[i]):
        places.setdefault(second[place], []).append(place)
    return np.array([places[key].pop(0) for key in first])


class Paired(NamedTuple):
    """Both sides' clips in one order, a row a seed."""

    labels_N: Int[np.ndarray, " N"]
    cluster_N: Shaped[np.ndarray, " N"]
    grouped: bool
    correct_a_KxN: Bool[np.ndarray, "K N"]
    correct_b_KxN: Bool[np.ndarray, "K N"]
    probability_a_KxN: Float[np.ndarray, "K N"]
    probability_b_KxN: Float[np.ndarray, "K N"]


def pair_clips(a: Side, b: Side) -> Paired:
    """The clips of both in the order of the first."""
    first_a, first_b = next(iter(a.seeds.values())), next(iter(b.seeds.values()))
    order = _order(first_b, *_keys(first_a, first_b))
    violent_N = first_a.labels_N == 1
    probability_a = np.stack([p.probability_N for p in a.seeds.values()])
    probability_b = np.stack([p.probability_N[order] for p in b.seeds.values()])
    said_a = np.stack([p.predicted_N for p in a.seeds.values()])
    said_b = np.stack([p.predicted_N[order] for p in b.seeds.values()])
    by_b = first_b.grouped and not first_a.grouped
    cluster_N = first_b.cluster_N[order] if by_b else first_a.cluster_N
    return Paired(
        first_a.labels_N, cluster_N, first_a.grouped or first_b.grouped,
        said_a == violent_N, said_b == violent_N, probability_a, probability_b,
    )  # fmt: skip
