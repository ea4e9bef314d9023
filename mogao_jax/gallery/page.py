"""The HTML pages that commands write."""

from __future__ import annotations

from typing import Any


def fill_template(package: str, **values: Any) -> str:
    """The page.html of a package, as HTML; text is escaped, and an unknown name is an error."""
    import jinja2  # not for commands that write no page

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(**values)
