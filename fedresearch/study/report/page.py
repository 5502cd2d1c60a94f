"""A report as one HTML file that needs no network."""

import gzip
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

# What the script reads; to follow a newer document, it reads all.
_DRAWN = ("arms", "panels", "cells", "axes", "metrics", "targets", "base", "runs", "partitions")


def page(document: Mapping[str, Any], tag: str = "") -> str:
    """Return a report as a self-contained HTML page.

    Parameters
    ----------
    document : mapping
        JSON values under ``title``, ``metric``, ``axis``, ``command``, ``generated``, ``warnings``, ``notes``,
        ``axes``, ``metrics``, ``targets``, ``arms``, ``panels``, ``cells``, ``tables``, ``figures``, ``base``,
        ``runs`` and ``partitions``; ``page.html`` reads them all. Any list may be empty.
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
    lines = map(str.strip, template.splitlines())
    template = "\n".join(line for line in lines if not line.startswith(("//", "/*")))  # without comments
    drawn = document if tag else {name: document[name] for name in _DRAWN}
    data = json.dumps(drawn, allow_nan=False, separators=(",", ":"))
    return environment.from_string(template).render(document, data=_pack(data), plotly=_plotly, tag=tag)


@cache
def _plotly() -> tuple[int, str]:
    return _pack(get_plotlyjs())


def _pack(text: str) -> tuple[int, str]:
    """Return a text compressed, as its number of bytes and as characters of which each holds 7 bits.

    This is an eighth shorter than base64. A character is one byte of UTF-8, but for those that HTML changes, and a "<"
    that could end a script or begin a comment: these have their eighth bit set, and take two.
    """
    content = gzip.compress(text.encode(), mtime=0)
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    codes = np.packbits(np.pad(bits, (0, -len(bits) % 7)).reshape(-1, 7), axis=1).ravel() >> 1
    is_tag = (codes == ord("<")) & np.isin(np.append(codes[1:], 0), [*b"/!"])
    codes[np.isin(codes, [*b"\0\r"]) | is_tag] |= 128
    return len(content), codes.tobytes().decode("latin-1")
