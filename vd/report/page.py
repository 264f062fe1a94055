"""Templates filled in: how a page shows numbers; what a file does not say is a dash."""

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2

DASH = "–"


class _Missing(jinja2.ChainableUndefined):
    """A value that is not there: a dash on the page, whatever is asked of it."""

    def __str__(self) -> str:
        return DASH


class Picture(NamedTuple):
    """A picture as a data URI, and what it shows, for those who do not see it."""

    source: str
    alt: str


def picture(content: bytes, kind: str, alt: str) -> Picture:
    """An image file of a kind (png, jpeg) as a picture that the page itself holds."""
    return Picture(
        f"data:image/{kind};base64,{base64.b64encode(content).decode()}", alt
    )


def render(package: str, template: str, values: Mapping[str, Any]) -> str:
    """A template of `package` filled in, a whole page; names from files are escaped.

    Templates may build on `base.html.j2` of this package.
    """
    packages = dict.fromkeys([package, "vd.report"])
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=_Missing,
        finalize=lambda value: DASH if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "decimal": decimal,
        "yes_no": lambda value: {True: "YES", False: "no"}.get(value, DASH),
    }
    page = environment.get_template(template).render(values)
    # names that are not UTF-8 stay readable
    return page.encode("utf-8", "backslashreplace").decode()


def percent(value: Any) -> str:
    """A share, or an interval [low, high] of shares, in percent."""
    if isinstance(value, list):
        return f"{100 * value[0]:z.1f} to {100 * value[1]:z.1f} %"
    return f"{100 * value:z.1f} %" if isinstance(value, int | float) else DASH


def decimal(value: Any, digits: int = 3) -> str:
    """A number, or an interval [low, high], with so many decimals."""
    if isinstance(value, list):
        return f"{value[0]:z.{digits}f} to {value[1]:z.{digits}f}"
    return f"{value:z.{digits}f}" if isinstance(value, int | float) else DASH
