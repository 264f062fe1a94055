"""Pages: a template filled in; every name from a file is escaped."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def render(
    package: str,
    template: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """A template of `package`, filled in: a whole HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    made = environment.get_template(template).render(values)
    # names that are no UTF-8 stay readable
    return made.encode("utf-8", "backslashreplace").decode()
