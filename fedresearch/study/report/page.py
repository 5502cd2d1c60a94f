"""A report as one HTML file that needs no network."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs


def page(document: Mapping[str, Any], tag: str = "") -> str:
    """Return a report as a self-contained HTML page.

    Parameters
    ----------
    document : mapping
        JSON values under ``title``, ``metric``, ``command``, ``generated``, ``warnings``, ``notes``, ``axes``,
        ``metrics``, ``targets``, ``cells``, ``tables``, ``figures``, ``base`` and ``runs``; ``page.html`` reads them
        all. Any list may be empty.
    tag : str
        The tag of the document, with which the page asks its server for newer ones; "": it does not ask.

    Raises
    ------
    ValueError
        If a number is not finite; JSON needs null instead.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # The filter tojson also escapes <, >, & and ', so that no label ends the script or attribute around it.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    template = resources.files("fedresearch.study.report").joinpath("page.html").read_text("utf-8")
    return environment.from_string(template).render(document, plotly=get_plotlyjs(), tag=tag)
