"""How the page shows numbers, and what it calls them."""

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from vd.metrics.binary import NAMES
from vd.pages import render
from vd.report import words

_NO_SHARES = "roc_auc", "average_precision", "brier", "ece"
METRICS = {  # what the page calls them, and whether they are shares
    key: (
        f"{name} (0 is best)" if key in ("brier", "ece") else name,
        key not in _NO_SHARES,
    )
    for key, name in NAMES.items()
}


def page(template: str, **values: Any) -> str:
    """The template filled in, a whole HTML page."""
    filters: dict[str, Callable[..., Any]] = {
        "percent": _percent,
        "decimal": _decimal,
        "percents": words.percents,
        "decimals": words.decimals,
        "plain": _plain,
    }
    return render("vd.report", template, {"METRICS": METRICS, **values}, filters)


def _percent(value: float | None) -> Markup:
    """A share in percent, for people and programs."""
    return _exact(value, words.percent(value))


def _decimal(value: float | None) -> Markup:
    """A number with three decimals, for people and programs."""
    return _exact(value, words.decimal(value))


def _exact(value: float | None, shown: str) -> Markup:
    """A rounded number that carries the file's own digits, for programs."""
    if value is None:
        return Markup("{}").format(shown)
    return Markup('<data value="{}">{}</data>').format(repr(value), shown)


def _plain(value: Any) -> str:
    """A setting's value in words."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def ledger_rows(described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ledger of a config.json, a row a split and class, its reasons in words."""
    return [
        {
            **row,
            "reasons": ", ".join(
                f"{count} {reason}" for reason, count in row["reasons"].items()
            ),
        }
        for row in described["ledger"]["per_split_and_class"]
    ]
