"""The ledger: every file is used, partial or quarantined, counted by class and split."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vd.config import DataConfig, DecodeConfig
from vd.console import say, track
from vd.data.catalog import Catalog
from vd.data.decode import FrameSettings
from vd.data.manifest import CLASSES, SPLITS, Video, count_ignored
from vd.data.outcome import Outcome, check_file, outcome_row
from vd.data.workers import decode_pool, decode_videos
from vd.errors import LOSS_GAP, VdError

_SIGNIFICANT = 0.01  # p-value below which a loss gap is not chance


@dataclass(frozen=True)
class Entry:
    """One file and its outcome."""

    video: Video
    outcome: Outcome


@dataclass(frozen=True)
class Ledger:
    """Every file of a data set with its outcome."""

    entries: tuple[Entry, ...]

    def usable(self) -> list[Video]:
        """The videos that are used, wholly or in part."""
        return [e.video for e in self.entries if e.outcome.outcome != "quarantined"]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of ledger.csv and scan.csv."""
        rows = []
        for entry in self.entries:
            video, outcome = entry.video, outcome_row(entry.outcome)
            del outcome["brightness"]  # it only serves slices of evaluations
            rows.append(
                {
                    "path": video.name,
                    "label": CLASSES[video.label],
                    "split": video.split,
                    "group": video.group,
                    **outcome,
                    "sha256": video.id,
                }
            )
        return rows

    def counts(self) -> list[dict[str, Any]]:
        """Found, used, partial and quarantined with its reasons, per split and class."""
        rows = []
        for split, label in itertools.product(("", *SPLITS), range(len(CLASSES))):
            outcomes = [
                entry.outcome
                for entry in self.entries
                if (entry.video.split, entry.video.label) == (split, label)
            ]
            if not outcomes:
                continue
            kinds = Counter(outcome.outcome for outcome in outcomes)
            reasons = Counter(o.reason for o in outcomes if o.outcome == "quarantined")
            row = {"split": split, "class": CLASSES[label], "found": len(outcomes)}
            row |= {kind: kinds[kind] for kind in ("used", "partial", "quarantined")}
            rows.append({**row, "reasons": dict(sorted(reasons.items()))})
        return rows

    def loss_gap(self) -> dict[str, float]:
        """Share of quarantined files of each class, the difference, Fisher's p (two-sided)."""
        from scipy.stats import fisher_exact

        table = np.zeros((2, 2), int)  # by class: lost, not lost
        for entry in self.entries:
            table[entry.video.label, int(entry.outcome.outcome != "quarantined")] += 1
        nonviolent, violent = (table[:, 0] / np.maximum(table.sum(axis=1), 1)).tolist()
        return {
            "lost_nonviolent": nonviolent,
            "lost_violent": violent,
            "gap": abs(nonviolent - violent),
            "p": float(fisher_exact(table).pvalue),
        }

    def summary(self, ignored: Sequence[str] = ()) -> dict[str, Any]:
        """The content of scan.json."""
        return {
            "found": len(self.entries),
            "usable": len(self.usable()),
            "per_split_and_class": self.counts(),
            "loss_gap": self.loss_gap(),
            "ignored": list(ignored),
        }


def report(ledger: Ledger, ignored: Sequence[str], path: Path) -> None:
    """Print a line per split and class, then each file that is not wholly used.

    `path` is the CSV with all rows.
    """
    counts = ledger.counts()
    unsplit = "none" if any(row["split"] for row in counts) else "all"
    for row in counts:
        reasons = ", ".join(f"{n} {reason}" for reason, n in row["reasons"].items())
        say(
            f"  {row['split'] or unsplit:5} {row['class']:10} found {row['found']}, "
            f"used {row['used']}, partial {row['partial']}, quarantined "
            f"{row['quarantined']}" + (f" ({reasons})" if reasons else "")
        )
    faulty = [entry for entry in ledger.entries if entry.outcome.outcome != "used"]
    for entry in faulty[:20]:
        say(f"  {entry.outcome.outcome}: {entry.video.name!r} {entry.outcome.reason}")
    if len(faulty) > 20:
        say(f"  … and {len(faulty) - 20} more; all are in {path}")
    if any(entry.outcome.reason == "timeout" for entry in faulty):
        say(
            "  videos that missed the deadline stay quarantined; --retry-quarantined decodes "
            "them again, best with a longer --decode-timeout-seconds"
        )
    if ignored:
        say(f"  ignored {len(ignored)} files: {count_ignored(ignored)}")


def check_loss_gap(ledger: Ledger, max_loss_gap: float) -> None:
    """Raise `VdError` when no file is usable, or one class lost far more than the other."""
    if not ledger.usable():
        raise VdError(
            f"none of the {len(ledger.entries)} files is usable; the reasons are above: "
            "repair or replace the files, or name another --dataset-path."
        )
    gap = ledger.loss_gap()
    if is_excessive(gap, max_loss_gap):
        raise VdError(
            f"{100 * gap['lost_violent']:.0f} % of violent and "
            f"{100 * gap['lost_nonviolent']:.0f} % of non-violent files were lost "
            f"(Fisher's p = {gap['p']:.1g}), a gap above --max-loss-gap {max_loss_gap}; "
            "repair or replace the files listed in the ledger, or continue with "
            "--max-loss-gap 1.",
            LOSS_GAP,
        )


def is_excessive(gap: Mapping[str, float], max_loss_gap: float) -> bool:
    """Whether a `Ledger.loss_gap` is above the bound, and not by chance."""
    return gap["gap"] > max_loss_gap and gap["p"] < _SIGNIFICANT


def scan(videos: Sequence[Video], data: DataConfig, decode: DecodeConfig) -> Ledger:
    """Decode every video once; files whose outcome is known are not decoded again."""
    catalog = Catalog(data.cache_dir)
    known = catalog.outcomes()
    decoding = DecodingPass(videos, decode)
    for _ in decoding.stretches(known, catalog, "scanning", keep_images=False):
        pass
    return decoding.ledger(known)


def settled(video: Video, outcome: Outcome) -> Outcome:
    """The outcome of decoding a video, unless its file has changed since it was hashed."""
    if not video.id and outcome.outcome != "quarantined":
        return Outcome("quarantined", "changed")  # it could not be read to be hashed
    try:
        status = os.stat(video.path)
    except (OSError, ValueError):
        return outcome  # which has the reason
    now = status.st_size, status.st_mtime_ns
    if not video.modified or now == (video.size, video.modified):
        return outcome
    return Outcome("quarantined", "changed")


class DecodingPass:
    """One pass over a data set: the videos still to be decoded, and the ledger at the end.

    Copies share one content: it is decoded once and its outcome holds for all of them. That
    a file is missing or unreadable concerns its path alone: another copy is decoded then.
    """

    def __init__(self, videos: Sequence[Video], decode: DecodeConfig) -> None:
        self._videos = videos
        self._decode = decode
        self._taken: set[str] = set()
        self._at_path = {
            video.path: Outcome("quarantined", reason)
            for video in videos
            if (reason := check_file(video.path))
        }

    def pending(self, known: Mapping[str, Outcome]) -> list[Video]:
        """A video of each content without an outcome; call again when all are taken.

        `known` are outcomes by content hash.
        """
        pending: dict[str | Path, Video] = {}
        for video in self._videos:
            if video.path in self._at_path:
                continue
            outcome = known.get(video.id)
            again = self._decode.retry_quarantined and video.id not in self._taken
            if outcome is None or (again and outcome.outcome == "quarantined"):
                pending.setdefault(video.id or video.path, video)
        return list(pending.values())

    def stretches(
        self,
        known: dict[str, Outcome],
        catalog: Catalog,
        doing: str,
        keep_images: bool = True,
    ) -> Iterator[tuple[Video, np.ndarray, Outcome | None]]:
        """Decode the pending videos; their outcomes go to `known` and to the catalog.

        Yields the images of each stretch, with the outcome when it is the video's last.
        """
        while pending := self.pending(known):
            paths = [video.path for video in pending]
            with (
                track(doing, len(pending), "videos") as ticker,
                decode_pool(FrameSettings(), self._decode, len(pending)) as pool,
            ):
                for piece in decode_videos(paths, pool, keep_images):
                    video, outcome = pending[piece.index], None
                    if piece.outcome is not None:
                        outcome = settled(video, piece.outcome)
                        if self.take(video, outcome):
                            catalog.add_outcomes({video.id: outcome})
                            known[video.id] = outcome
                        ticker.advance()
                    yield video, piece.images, outcome

    def take(self, video: Video, outcome: Outcome) -> bool:
        """Record the outcome of a pending video; whether it is one of its content."""
        if video.id and outcome.of_content:
            self._taken.add(video.id)
            return True
        self._at_path[video.path] = outcome
        return False

    def ledger(self, known: Mapping[str, Outcome]) -> Ledger:
        """The ledger, when no video is pending."""
        return Ledger(
            tuple(
                Entry(video, self._at_path.get(video.path) or known[video.id])
                for video in self._videos
            )
        )
