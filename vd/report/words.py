"""The verdict in words: what the figure is, and what speaks against believing it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vd.config import DataConfig
from vd.data.ledger import is_excessive
from vd.evaluation.verdict import signed
from vd.metrics.binary import COLLAPSE
from vd.report.facts import RunFacts

UNDEFINED = "undefined"
NO_GROUPS = "no source groups known"
_NO_GROUPS = (
    f"{NO_GROUPS}: clips of one recording may be in train and test, and the intervals treat "
    "clips as independent."
)


class Sentence(NamedTuple):
    """A sentence of the verdict, and how much it weighs: by a word, not by colour alone."""

    kind: str  # "", "Caution" or "Warning"
    text: str


def percent(value: float | None) -> str:
    """A share in percent."""
    return UNDEFINED if value is None else f"{100 * value:.1f} %"


def decimal(value: float | None) -> str:
    """A number with three decimals."""
    return UNDEFINED if value is None else signed(value, 3)


def percents(interval: Sequence[float] | None, unit: str = "%") -> str:
    """An interval of shares in percent, or of their differences in points."""
    if interval is None:
        return "not known"
    low, high = (signed(100 * end, 1) for end in interval)
    return f"{low} to {high} {unit}"


def decimals(interval: Sequence[float] | None) -> str:
    """An interval with three decimals."""
    if interval is None:
        return "not known"
    return f"{decimal(interval[0])} to {decimal(interval[1])}"


def run_verdict(facts: RunFacts) -> list[Sentence]:
    """The verdict on a run, the figure first."""
    told = facts.test
    n, violent = told["n"], told["n_violent"]
    accuracy, between = told["accuracy"], told["accuracy_ci95"]
    made = [
        Sentence(
            "",
            f"On {n} test clips, {violent} of them violent, the detector is right on "
            f"{percent(accuracy)}; 95 % interval {percents(between)}.",
        ),
        beats_majority(accuracy, between, n, violent),
        Sentence(
            "",
            f"Recall of violent clips {percent(told['recall_violent'])}, of the others "
            f"{percent(told['recall_nonviolent'])}; ROC AUC "
            f"{decimal(told['roc_auc'])} ({decimals(told['roc_auc_ci95'])}).",
        ),
    ]
    if told["collapsed"]:
        made.append(
            Sentence(
                "Warning",
                f"CLASS COLLAPSE: {COLLAPSE}. The accuracy says nothing.",
            )
        )
    if told["groups"] is None:
        made.append(Sentence("Caution", _sentence(_NO_GROUPS)))
    made += [
        Sentence("Caution", _sentence(text))
        for text in told["warnings"]
        if not text.startswith(NO_GROUPS)
    ]
    made.append(loss(facts.described))
    made += _training(facts)
    made.append(_calibration(told["ece"], told["ece_ci95"], told.get("ece_by_chance")))
    return made


def _calibration(
    ece: float | None, between: Sequence[float] | None, chance: float | None
) -> Sentence:
    """The calibration error, held against that of chance (unknown to earlier versions)."""
    told = f"expected calibration error, {decimals(between)}"
    held = ""
    if chance is not None:
        held = f"; by chance, a calibrated one is off by {decimal(chance)} on so many clips"
    text = f"Its probabilities are off by {decimal(ece)} on average ({told}){held}."
    return Sentence("", text)


def beats_majority(
    accuracy: float | None, between: Sequence[float] | None, n: int, violent: int
) -> Sentence:
    """Whether the detector beats the answer that is always the more frequent class."""
    share = max(violent, n - violent) / n
    name = "violent" if 2 * violent >= n else "non-violent"
    always = f"always saying {name} would be right on {percent(share)}"
    if accuracy is None:
        return Sentence("Caution", f"Its accuracy is undefined; {always}.")
    if violent in (0, n):
        return Sentence("Caution", f"All clips are {name}: a constant is always right.")
    if accuracy <= share:
        return Sentence("Warning", f"It is no better than a constant: {always}.")
    if between is None:
        return Sentence("Caution", f"There is no interval; {always}.")
    if between[0] <= share:
        text = f"Not shown to beat a constant: {always}, which the interval reaches."
        return Sentence("Caution", text)
    return Sentence("", f"It beats a constant: {always}, below the whole interval.")


def loss(described: Mapping[str, Any]) -> Sentence:
    """What was lost of each class before training, by a config.json."""
    gap = described["ledger"]["loss_gap"]
    shares = (
        f"{percent(gap['lost_violent'])} of the violent and "
        f"{percent(gap['lost_nonviolent'])} of the non-violent files were quarantined"
    )
    if is_excessive(gap, DataConfig.max_loss_gap):  # whatever the run allowed itself
        text = (
            f"LOSS GAP: {shares} (Fisher's p = {gap['p']:.1g}): what is left is another "
            "data set, and the figures are of that one."
        )
        return Sentence("Warning", text)
    if not gap["lost_violent"] and not gap["lost_nonviolent"]:
        return Sentence("", "No file was lost: all were used, wholly or in part.")
    return Sentence("", f"{shares[0].upper()}{shares[1:]}; no gap between the classes.")


def _training(facts: RunFacts) -> list[Sentence]:
    """How training ended, and whether it overfitted."""
    stopping, epochs = facts.stopping, facts.config.training.epochs
    metric = stopping.metric.replace("val_", "validation ").replace("_", " ")
    ended = "was stopped early" if stopping.stops else "ran to its end"
    made = [
        Sentence(
            "",
            f"Training {ended} after {stopping.epoch} of at most {epochs} epochs; the figures "
            f"are of epoch {stopping.best_epoch}, the best by {metric}.",
        )
    ]
    if stopping.best_epoch == stopping.epoch:
        text = "The last epoch was the best: more --epochs may give more."
        made.append(Sentence("Caution", text))
    since = facts.overfitting_since
    if since is not None:
        made.append(
            Sentence(
                "Caution",
                f"OVERFITTING from epoch {since}: for three epochs the training loss was lower "
                "and the validation loss a tenth higher than at its least. The figures are "
                f"of epoch {stopping.best_epoch} all the same.",
            )
        )
    return made


def crossval_verdict(
    values: Mapping[str, Any], described: Mapping[str, Any]
) -> list[Sentence]:
    """The verdict on a cross-validation; `described` is the config.json of a member."""
    of, n = values["over_seeds"], values["n"]
    accuracy, between = of["accuracy"]["mean"], of["accuracy"]["ci95"]
    folds = values["over_folds"]["accuracy"]
    made = [
        Sentence(
            "",
            f"Of {n} clips, {values['n_violent']} of them violent, each tested once a seed in "
            f"{values['folds']} folds × {len(values['seeds'])} seeds, {percent(accuracy)} are "
            f"judged right; 95 % interval {percents(between)}.",
        ),
        beats_majority(accuracy, between, n, values["n_violent"]),
        Sentence(
            "",
            f"Recall of violent clips {percent(of['recall_violent']['mean'])}, of the others "
            f"{percent(of['recall_nonviolent']['mean'])}; ROC AUC "
            f"{decimal(of['roc_auc']['mean'])} ({decimals(of['roc_auc']['ci95'])}).",
        ),
        Sentence(
            "",
            f"The accuracy of a single fold lies between {percent(folds['min'])} and "
            f"{percent(folds['max'])}: so much hangs on which clips are tested.",
        ),
    ]
    ece = of["ece"]["mean"], of["ece"]["ci95"]
    made.append(_calibration(*ece, values.get("ece_by_chance")))
    for text in values["warnings"]:
        kind = "Warning" if text.startswith("CLASS COLLAPSE") else "Caution"
        made.append(Sentence(kind, _sentence(text)))
    made.append(loss(described))
    return made + [
        Sentence(
            "Warning",
            f"CLASS COLLAPSE in {cell['collapsed']} of {cell['members']} members trained on "
            f"{cell['trained_on']} and tested on {cell['tested_on']}: {COLLAPSE}.",
        )
        for cell in values.get("matrix", [])
        if cell["collapsed"] and cell["trained_on"] != cell["tested_on"]
    ]


def _sentence(text: str) -> str:
    """A warning as a sentence of its own."""
    return text[:1].upper() + text[1:].rstrip(".") + "."
