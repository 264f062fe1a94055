"""The tables of heads.jsonl, from its logits alone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from heads_lines import Line, Results
from jaxtyping import Float, Int

from vd.metrics.binary import accuracy, point_metrics, roc_auc, shown
from vd.metrics.calibration import fit
from vd.metrics.intervals import metric_intervals, resampled_metrics

PROBE = "probe, C by inner folds"  # as the best of several, its inner score flatters
REFERENCE = "probe C 0.01"  # as in probe.py: chosen before the first run
_INNER_HEAD = """\
| setting | ROC AUC | log loss | accuracy | less that of probe C 0.01 | parts above it | CPU seconds |
|---|---|---|---|---|---|---|"""
_OUTER_HEAD = """\
| setting | accuracy | ROC AUC | recall violent | non-violent | mean of folds' AUC | log loss |
|---|---|---|---|---|---|---|"""

Logits = Float[np.ndarray, " N"]


class Scored(NamedTuple):
    """Logits of clips that their trainings have not seen, with what is known of the clips."""

    logits_N: Logits
    labels_N: Int[np.ndarray, " N"]
    group_N: Int[np.ndarray, " N"]

    @property
    def temperature(self) -> float:
        """Fitted on these clips."""
        return fit(self.logits_N, self.labels_N).temperature


class Scores(NamedTuple):
    """Inner out-of-fold figures of one outer training part."""

    auc: float
    log_loss: float
    accuracy: float  # at probability 0.5


class Row(NamedTuple):
    """A row of the inner table: an entry for each outer training part."""

    name: str
    parts: list[Scores]
    seconds: float | None = None  # of the CPU, the median training of a seed


def scored(results: Results, lines: Sequence[Line]) -> Scored:
    """The clips of some lines, in their order."""
    clips = [results.clips[name] for line in lines for name in line["clips"]]
    return Scored(
        np.array([logit for line in lines for logit in line["logits"]], float),
        np.array([clip.label for clip in clips]),
        np.array([clip.group for clip in clips]),
    )


def log_loss(logits_N: Logits, labels_N: Int[np.ndarray, " N"]) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return float(np.mean(np.logaddexp(0.0, logits_N) - labels_N * logits_N))


def inner_lines(
    results: Results, name: str, outer: int, seed: int
) -> list[Line] | None:
    """The lines of all inner folds of an outer part; None unless they are complete."""
    lines = [
        line
        for (setting, of, inner, drawn), line in sorted(
            results.lines.items(), key=lambda item: item[0][2] or 0
        )
        if (setting, of, drawn) == (name, outer, seed) and inner is not None
    ]
    expected = sum(clip.outer != outer for clip in results.clips.values())
    return lines if sum(len(line["clips"]) for line in lines) == expected else None


def scores(part: Scored) -> Scores:
    """AUC of the pooled logits, and what their temperature makes of them."""
    scaled_N = part.logits_N / part.temperature
    auc = roc_auc(part.labels_N, part.logits_N)
    assert auc is not None  # inner folds have both classes
    return Scores(
        auc, log_loss(scaled_N, part.labels_N), accuracy(part.labels_N, scaled_N >= 0)
    )


def outers(results: Results) -> list[int]:
    """The numbers of the outer folds."""
    return sorted({clip.outer for clip in results.clips.values()})


def names(results: Results) -> list[str]:
    """The settings that have a line, in the order of their first."""
    return list(dict.fromkeys(name for name, *_ in results.lines))


def best_C(results: Results, outer: int) -> str:
    """The probe's setting of least inner log loss on one outer training part."""
    named = {
        line["setting"]
        for line in results.lines.values()
        if line["settings"]["C"] is not None and not line["settings"]["components"]
    }
    losses = {}
    for name in sorted(named):
        if (lines := inner_lines(results, name, outer, 0)) is not None:
            losses[name] = scores(scored(results, lines)).log_loss
    return min(losses, key=losses.__getitem__)


def rows(results: Results) -> Iterator[Row]:
    """Each complete row of the inner table, and the mean logits of several seeds."""
    best = [
        inner_lines(results, best_C(results, outer), outer, 0) or []
        for outer in outers(results)
    ]
    yield Row(PROBE, [scores(scored(results, lines)) for lines in best])
    for name in names(results):
        seeds = sorted({seed for setting, *_, seed in results.lines if setting == name})
        complete: list[list[Scored]] = []
        seconds = 0.0
        for seed in seeds:
            found = [inner_lines(results, name, o, seed) for o in outers(results)]
            parts = [lines for lines in found if lines is not None]
            if len(parts) < len(found):
                continue
            complete.append([scored(results, lines) for lines in parts])
            label = f"{name}, seed {seed}" if seed else name
            own = [line["cpu_seconds"] for lines in parts for line in lines]
            seconds += float(np.median(own))
            yield Row(label, list(map(scores, complete[-1])), float(np.median(own)))
        if len(complete) > 1:
            means = [averaged(parts) for parts in zip(*complete, strict=True)]
            label = f"{name}, {len(complete)} seeds averaged"
            yield Row(label, list(map(scores, means)), seconds)


def averaged(parts: Sequence[Scored]) -> Scored:
    """The mean logits of several seeds on the same clips."""
    logits_N = np.mean([part.logits_N for part in parts], axis=0)
    return parts[0]._replace(logits_N=logits_N)


def table(results: Results) -> str:
    """The inner scores, each the mean ± deviation over outer training parts; then the outer."""
    written = [_INNER_HEAD]
    complete = list(rows(results))
    by_name = {name: np.array(parts) for name, parts, _ in complete}
    for name, parts, seconds in complete:
        auc_O, loss_O, accuracy_O = np.array(parts).T
        gain_O = auc_O - by_name[REFERENCE][:, 0]
        written.append(
            f"| {name} | {_spread(auc_O)} | {_spread(loss_O)} | "
            f"{100 * accuracy_O.mean():.1f} % | {_spread(gain_O, '+')} | "
            f"{np.sum(gain_O > 0)} of {len(gain_O)} | "
            f"{'' if seconds is None else f'{seconds:.0f}'} |"
        )
    outer = list(outer_rows(results))
    if outer:
        written += ["", _OUTER_HEAD, *outer]
    return "\n".join(written)


def outer_rows(results: Results) -> Iterator[str]:
    """Each setting whose outer folds are all tested; the probe first."""
    tested = {(name, seed) for name, _, inner, seed in results.lines if inner is None}
    of_probe = [best_C(results, outer) for outer in outers(results)]
    chosen = {(PROBE, 0): of_probe}
    for name, seed in sorted(tested):
        if all(line["settings"]["C"] is None for line in _of(results, name)):
            chosen[name, seed] = [name] * len(of_probe)
    for (label, seed), settings in chosen.items():
        parts = [
            outer_part(results, name, outer, seed)
            for outer, name in zip(outers(results), settings, strict=True)
        ]
        whole = [part for part in parts if part is not None]
        if len(whole) == len(parts):
            yield _outer_row(f"{label}, seed {seed}" if seed else label, whole)


def outer_part(results: Results, name: str, outer: int, seed: int) -> Scored | None:
    """An outer fold's logits, divided by the temperature of its inner ones."""
    line = results.lines.get((name, outer, None, seed))
    inner = inner_lines(results, name, outer, seed) or inner_lines(
        results, name, outer, 0
    )
    if line is None or inner is None:
        return None
    part = scored(results, [line])
    return part._replace(logits_N=part.logits_N / scored(results, inner).temperature)


def _outer_row(label: str, parts: Sequence[Scored]) -> str:
    """Figures of all folds together, with intervals by group."""
    logits_N, labels_N, group_N = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    probability_N = 1 / (1 + np.exp(-logits_N))
    tested = labels_N, probability_N, probability_N >= 0.5
    values = point_metrics(*tested)
    ends = metric_intervals(
        values, [resampled_metrics(*tested, group_N)], labels_N, group_N
    )
    cells = [
        f"{shown(name, values[name])} ({shown(name, ends[f'{name}_ci95'])})"
        for name in ("accuracy", "roc_auc", "recall_violent", "recall_nonviolent")
    ]
    auc_O = [scores(part).auc for part in parts]
    more = f"{np.mean(auc_O):.3f}", f"{log_loss(logits_N, labels_N):.3f}"
    return f"| {' | '.join([label, *cells, *more])} |"


def _of(results: Results, name: str) -> list[Line]:
    return [line for (setting, *_), line in results.lines.items() if setting == name]


def _spread(values: Float[np.ndarray, " O"], sign: str = "") -> str:
    """Mean ± sample deviation."""
    return f"{values.mean():{sign}.3f} ± {values.std(ddof=1):.3f}".replace("-", "−")
