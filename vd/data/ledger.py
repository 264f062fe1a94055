"""The ledger: every file ends as used, partial or quarantined, counted by class and split."""

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vd.config import DataConfig, DecodeConfig
from vd.console import say, track
from vd.data.frames import FrameSettings
from vd.data.manifest import CLASSES, SPLITS, Video
from vd.data.outcome import Outcome, check_file, outcome_from_row
from vd.data.pool import decode_pool
from vd.data.workers import decode_videos
from vd.errors import LOSS_GAP, VdError
from vd.files import append_csv, recover_csv

_SIGNIFICANT = 0.01  # a gap below this p-value is no accident


@dataclass(frozen=True)
class Entry:
    """What became of one file."""

    video: Video
    outcome: Outcome


@dataclass(frozen=True)
class Ledger:
    """Every file of a data set, found = used + partial + quarantined."""

    entries: tuple[Entry, ...]

    def usable(self) -> list[Video]:
        """The videos that were used, wholly or in part."""
        return [e.video for e in self.entries if e.outcome.outcome != "quarantined"]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of ledger.csv and scan.csv."""
        return [
            {
                "path": entry.video.name,
                "label": CLASSES[entry.video.label],
                "split": entry.video.split,
                "group": entry.video.group,
                **_columns(entry.outcome),
                "sha256": entry.video.id,
            }
            for entry in self.entries
        ]

    def counts(self) -> list[dict[str, Any]]:
        """Found, used, partial and quarantined with its reasons, per split and class."""
        tables = []
        for split in ("", *SPLITS):
            for label, name in enumerate(CLASSES):
                outcomes = [
                    entry.outcome
                    for entry in self.entries
                    if entry.video.label == label and entry.video.split == split
                ]
                if not outcomes:
                    continue
                kinds = Counter(outcome.outcome for outcome in outcomes)
                reasons = Counter(
                    o.reason for o in outcomes if o.outcome == "quarantined"
                )
                found = len(outcomes)
                if found != kinds["used"] + kinds["partial"] + kinds["quarantined"]:
                    raise AssertionError(
                        f"the ledger does not add up: {found}, {kinds}"
                    )
                tables.append(
                    {
                        "split": split,
                        "class": name,
                        "found": found,
                        "used": kinds["used"],
                        "partial": kinds["partial"],
                        "quarantined": kinds["quarantined"],
                        "reasons": dict(sorted(reasons.items())),
                    }
                )
        return tables

    def loss_gap(self) -> dict[str, float]:
        """Shares of lost files of both classes, their difference, Fisher's p (two-sided)."""
        from scipy.stats import fisher_exact

        lost, found = [0, 0], [0, 0]
        for entry in self.entries:
            found[entry.video.label] += 1
            lost[entry.video.label] += entry.outcome.outcome == "quarantined"
        shares = [lost[c] / max(found[c], 1) for c in (0, 1)]
        table = [[lost[c], found[c] - lost[c]] for c in (0, 1)]
        return {
            "lost_nonviolent": shares[0],
            "lost_violent": shares[1],
            "gap": abs(shares[0] - shares[1]),
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


def _columns(outcome: Outcome) -> dict[str, Any]:
    """An outcome's columns in ledger.csv and scan.csv."""
    columns = asdict(outcome)
    del columns["brightness"]  # kept for slices of evaluations alone
    return columns


def report(ledger: Ledger, ignored: Sequence[str], path: Path) -> None:
    """Print the ledger's table, a line a split and class, then each file not wholly used.

    `path` is where all rows are.
    """
    counts = ledger.counts()
    unsplit = "none" if any(row["split"] for row in counts) else "all"
    for row in counts:
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in row["reasons"].items()
        )
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
            "  what missed its deadline stays quarantined; try it again with "
            "--retry-quarantined and a longer --decode-timeout-seconds"
        )
    if any(entry.outcome.reason == "changed" for entry in faulty):
        say(
            "  what changed between its hash and its decoding was not used; the same command "
            "takes it as it is now"
        )
    if ignored:
        say(f"  ignored, no videos by name: {len(ignored)} files ({ignored[0]!r}, …)")


def check_loss_gap(ledger: Ledger, max_loss_gap: float) -> None:
    """Raise `VdError` with exit code 3 when one class lost far more files than the other.

    And with exit code 2 when nothing at all is usable.
    """
    if not ledger.usable():
        raise VdError(
            f"none of the {len(ledger.entries)} files is usable; the reasons are above: "
            "mend the files, or name another --dataset-path."
        )
    gap = ledger.loss_gap()
    if is_excessive(gap, max_loss_gap):
        raise VdError(
            f"{100 * gap['lost_violent']:.0f} % of violent and "
            f"{100 * gap['lost_nonviolent']:.0f} % of non-violent files were lost "
            f"(Fisher's p = {gap['p']:.1g}), a gap above --max-loss-gap {max_loss_gap}; "
            "mend the files that the ledger names, or go on with --max-loss-gap 1.",
            LOSS_GAP,
        )


def is_excessive(gap: Mapping[str, float], max_loss_gap: float) -> bool:
    """Whether a `Ledger.loss_gap` is above the bound, and no accident."""
    return gap["gap"] > max_loss_gap and gap["p"] < _SIGNIFICANT


class OutcomeLog:
    """Outcomes by content hash, appended as they come: a killed scan goes on from here."""

    def __init__(self, cache_dir: Path) -> None:
        self._path = cache_dir / "outcomes.csv"
        self.known: dict[str, Outcome] = {}
        for row in recover_csv(self._path):
            with contextlib.suppress(KeyError, ValueError, TypeError):
                outcome = outcome_from_row(row)
                if outcome.of_content:
                    self.known[row["id"]] = outcome

    def add(self, outcomes: Mapping[str, Outcome]) -> None:
        """Append outcomes durably."""
        self.known |= outcomes
        rows = [{"id": key, **asdict(outcome)} for key, outcome in outcomes.items()]
        append_csv(self._path, rows)


def scan(videos: Sequence[Video], data: DataConfig, decode: DecodeConfig) -> Ledger:
    """Decode every video once; files whose outcome is known are not decoded again."""
    log = OutcomeLog(data.cache_dir)
    sweep = Sweep(videos, decode)
    while todo := sweep.lacking(log.known):
        paths = [video.path for video in todo]
        with (
            track("scanning", len(todo), "videos") as ticker,
            decode_pool(FrameSettings(), decode, len(todo)) as pool,
        ):
            for piece in decode_videos(paths, pool, keep_images=False):
                if piece.outcome is None:
                    continue
                video = todo[piece.index]
                outcome = settled(video, piece.outcome)
                if sweep.take(video, outcome):
                    log.add({video.id: outcome})
                ticker.advance()
    return sweep.ledger(log.known)


def settled(video: Video, outcome: Outcome) -> Outcome:
    """The outcome of decoding a video, unless its file is another since it was hashed."""
    try:
        status = os.stat(video.path)
    except (OSError, ValueError):
        return outcome  # which says so itself
    now = status.st_size, status.st_mtime_ns
    if not video.modified or now == (video.size, video.modified):
        return outcome
    return Outcome("quarantined", "changed")


class Sweep:
    """One pass over a data set: what is still to be decoded, and the ledger at the end.

    A content is decoded once, whatever its copies, and its outcome is of them all. That a
    file is missing or may not be read is of its path alone, now: another copy is taken.
    """

    def __init__(self, videos: Sequence[Video], decode: DecodeConfig) -> None:
        self._videos = videos
        self._retry = decode.retry_quarantined
        self._taken: set[str] = set()
        reasons = ((video.path, check_file(video.path)) for video in videos)
        self._at_path = {
            path: Outcome("quarantined", reason) for path, reason in reasons if reason
        }

    def lacking(self, known: Mapping[str, Outcome]) -> list[Video]:
        """A video of each content without an outcome; ask again when all were taken.

        `known` are outcomes by content hash.
        """
        lacking: dict[str | Path, Video] = {}
        for video in self._videos:
            if video.path not in self._at_path and not self._is_known(video.id, known):
                lacking.setdefault(video.id or video.path, video)
        return list(lacking.values())

    def take(self, video: Video, outcome: Outcome) -> bool:
        """Note the outcome of a lacking video; whether it is of its content, to be kept."""
        if video.id and outcome.of_content:
            self._taken.add(video.id)
            return True
        self._at_path[video.path] = outcome
        return False

    def ledger(self, known: Mapping[str, Outcome]) -> Ledger:
        """The ledger, once nothing lacks."""
        return Ledger(
            tuple(
                Entry(video, self._at_path.get(video.path) or known[video.id])
                for video in self._videos
            )
        )

    def _is_known(self, video_id: str, known: Mapping[str, Outcome]) -> bool:
        """Whether an outcome is known, and is not to be tried again."""
        if video_id not in known:
            return False
        again = self._retry and video_id not in self._taken
        return not (again and known[video_id].outcome == "quarantined")
