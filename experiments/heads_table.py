"""The tables of heads.jsonl, from its logits alone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from heads_lines import Line, Results, Setting
from jaxtyping import Float, Int
from scipy.special import expit

from vd.metrics.binary import accuracy, point_metrics, roc_auc, shown
from vd.metrics.calibration import fit
from vd.metrics.intervals import interval, metric_intervals, resampled_metrics

PROBE = "probe, C by inner folds"  # as the best of several, its inner score flatters
REFERENCE = "probe C 0.01"  # as in probe.py: chosen before the first run
_INNER_HEAD = """\
| setting | ROC AUC | log loss | accuracy | less that of probe C 0.01 | parts above it | CPU seconds |
|---|---|---|---|---|---|---|"""
OUTER_HEAD = """\
| setting | accuracy | ROC AUC | recall violent | non-violent | mean of folds' AUC | log loss |
|---|---|---|---|---|---|---|"""

SHOWN = "accuracy", "roc_auc", "recall_violent", "recall_nonviolent"

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


class OuterFolds(NamedTuple):
    """All outer folds of one model, divided by their inner temperatures."""

    together: Scored
    auc_O: list[float]

    @property
    def tested(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, probabilities, and which clips are predicted to be violent."""
        probability_N = expit(self.together.logits_N)
        return self.together.labels_N, probability_N, probability_N >= 0.5

    @property
    def values(self) -> dict[str, float]:
        """The metrics by name; all are defined, since both classes are tested."""
        values = point_metrics(*self.tested)
        return {name: np.nan if v is None else v for name, v in values.items()}

    @property
    def resampled(self) -> dict[str, np.ndarray]:
        """Metrics in resamples of whole groups."""
        return resampled_metrics(*self.tested, self.together.group_N)


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
        if (setting := Setting(**line["settings"])).C is not None
        and not (setting.components or setting.change)
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
            f"| {name} | {spread(auc_O)} | {spread(loss_O)} | "
            f"{100 * accuracy_O.mean():.1f} % | {spread(gain_O, '+')} | "
            f"{np.sum(gain_O > 0)} of {len(gain_O)} | "
            f"{'' if seconds is None else f'{seconds:.0f}'} |"
        )
    outer = list(outer_rows(results))
    if outer:
        written += ["", OUTER_HEAD, *outer]
    return "\n".join(written)


def outer_rows(results: Results) -> Iterator[str]:
    """Each setting and seed whose outer folds are all tested, the probe first.

    Then the paired difference of each setting's mean over seeds to the probe.
    """
    tested = {(name, seed) for name, _, inner, seed in results.lines if inner is None}
    if not tested:
        return
    of_probe = [best_C(results, outer) for outer in outers(results)]
    probe = outer_folds(results, of_probe, 0)
    if probe is None:
        return
    yield outer_row(PROBE, probe)
    by_name: dict[str, list[OuterFolds]] = {}
    for name, seed in sorted(tested):
        of_name = _of(results, name)
        folds = outer_folds(results, [name] * len(of_probe), seed)
        if folds is None or of_name[0]["settings"]["C"] is not None:
            continue
        by_name.setdefault(name, []).append(folds)
        yield outer_row(f"{name}, seed {seed}" if seed else name, folds)
    for name, seeds in by_name.items():
        yield _difference_row(f"{name}, less the probe's", probe, seeds)


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


def outer_folds(
    results: Results, settings: Sequence[str], seed: int
) -> OuterFolds | None:
    """All outer folds together, each with its setting; None unless all are tested."""
    pairs = zip(settings, outers(results), strict=True)
    parts = [outer_part(results, name, outer, seed) for name, outer in pairs]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    columns = zip(*whole, strict=True)
    together = Scored(*(np.concatenate(column) for column in columns))
    return OuterFolds(together, [scores(part).auc for part in whole])


def outer_row(label: str, folds: OuterFolds) -> str:
    """Figures of all folds together, with intervals by group."""
    part = folds.together
    ends = metric_intervals(
        folds.values, [folds.resampled], part.labels_N, part.group_N
    )
    cells = [
        f"{shown(name, folds.values[name])} ({shown(name, ends[f'{name}_ci95'])})"
        for name in SHOWN
    ]
    loss = log_loss(part.logits_N, part.labels_N)
    more = f"{np.mean(folds.auc_O):.3f}", f"{loss:.3f}"
    return f"| {' | '.join([label, *cells, *more])} |"


def _difference_row(label: str, probe: OuterFolds, seeds: Sequence[OuterFolds]) -> str:
    """Mean over seeds less the probe, on the same resamples of groups."""
    cells = []
    for name in SHOWN:
        gain = np.mean([one.values[name] for one in seeds]) - probe.values[name]
        gain_R = np.mean([one.resampled[name] for one in seeds], axis=0)
        ends = interval(gain_R - probe.resampled[name], probe.together.group_N)
        low, high = ends or (np.nan, np.nan)
        cells.append(f"{gain:+.3f} ({low:+.3f} to {high:+.3f})")
    losses = [
        log_loss(one.together.logits_N, one.together.labels_N)
        for one in (probe, *seeds)
    ]
    folds = np.mean([one.auc_O for one in seeds]) - np.mean(probe.auc_O)
    more = f"{folds:+.3f}", f"{np.mean(losses[1:]) - losses[0]:+.3f}"
    return f"| {' | '.join([label, *cells, *more])} |".replace("-", "−")


def _of(results: Results, name: str) -> list[Line]:
    return [line for (setting, *_), line in results.lines.items() if setting == name]


def spread(values: Float[np.ndarray, " O"], sign: str = "") -> str:
    """Mean ± sample deviation."""
    return f"{values.mean():{sign}.3f} ± {values.std(ddof=1):.3f}".replace("-", "−")
