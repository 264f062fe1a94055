"""Groups of videos that must be in one split: by source, by content, by what they show."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vd.data.manifest import Video


def merge_groups(
    videos: Sequence[Video], pairs: Iterable[tuple[str, str]] = ()
) -> list[Video]:
    """Give one group to videos that belong together: by group, content, or pairs of ids.

    Its name is the first of its groups in alphabetical order, else `like <first clip>`.
    """
    merged = {}
    for key, members in components(videos, pairs).items():
        first = min(video.name for video in members)
        several = len({_key(video) for video in members}) > 1
        named = key.startswith("group ")
        group = key.removeprefix("group ") if named else f"like {first}"
        for video in members:
            merged[video.name] = group if several else video.group
    return [dataclasses.replace(v, group=merged[v.name]) for v in videos]


def components(
    videos: Sequence[Video], pairs: Iterable[tuple[str, str]] = ()
) -> dict[str, list[Video]]:
    """Videos that must stay together, by the first of their groups' and contents' names."""
    links = [(_key(v), f"group {v.group}" if v.group else _key(v)) for v in videos]
    links += [(f"id {first}", f"id {second}") for first, second in pairs]
    names = sorted({name for link in links for name in link})
    number = {name: i for i, name in enumerate(names)}
    rows, columns = (
        np.array([[number[a], number[b]] for a, b in links]).reshape(-1, 2).T
    )
    graph = coo_array((np.ones(len(rows)), (rows, columns)), (len(names), len(names)))
    component = connected_components(graph, directed=False)[1]
    least: dict[int, str] = {}
    for name, label in zip(names, component, strict=True):  # in order of name
        least.setdefault(label, name)
    together = defaultdict(list)
    for video in videos:
        together[least[component[number[_key(video)]]]].append(video)
    return dict(together)


def _key(video: Video) -> str:
    """Equal for files of the same content; unique for a file without content."""
    return f"id {video.id}" if video.id else f"name {video.name}"
