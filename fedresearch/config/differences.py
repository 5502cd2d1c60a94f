"""Where two configs differ, and which differences change the numbers of a run."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fedresearch.config.compose import quoted
from fedresearch.config.options import follows
from fedresearch.config.schema import LISTS, chosen_lists, counted_hardware, counts
from fedresearch.dotted_keys import ABSENT, differing


class ConfigDifference(NamedTuple):
    """A dotted key and its two values (``dotted_keys.ABSENT`` if missing); ``numerical``: they change the numbers."""

    key: str
    a: Any
    b: Any
    numerical: bool

    @property
    def override(self) -> str:
        """What to type in a shell to replace ``b`` with ``a``."""
        if self.a is ABSENT and self.key.partition(".")[0] in LISTS:
            return ""  # the list has an override of its own
        if self.a is ABSENT:
            return shlex.quote(f"~{self.key}")
        if isinstance(self.a, str):
            is_word = re.fullmatch(r"[A-Za-z_./][\w./-]*", self.a) and self.a.lower() not in ("null", "true", "false")
            value = self.a if is_word else quoted(self.a)
        else:
            value = json.dumps(self.a, separators=(",", ":"))
        return shlex.quote(f"{'++' * (self.b is ABSENT)}{self.key}={value}")


def without_classes(
    found: Iterable[ConfigDifference], a: Mapping[str, Any], b: Mapping[str, Any]
) -> list[ConfigDifference]:
    """Return the differences of two records without classes and declarations that follow from different options."""
    groups = [key for key, *_ in differing(a.get("choices") or {}, b.get("choices") or {})]
    return [one for one in found if not follows(one.key, groups)]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[ConfigDifference]:
    """Return the differences of two configs. None is numerical exactly when the digests are equal.

    Parameters
    ----------
    a, b : mapping
        The configs as plain values: ``asdict`` of a ``Config``, or a record's ``config``.
    """
    a, b = (json.loads(json.dumps(plain)) for plain in (a, b))  # lists of a record were tuples
    counted = {key for key, *_ in differing(counted_hardware(a.get("hardware")), counted_hardware(b.get("hardware")))}
    if "device" in counted:
        counted.add("num_gpus")  # it also puts the clients on a GPU

    def numerical(key: str) -> bool:
        return counts(key) or key.removeprefix("hardware.") in counted

    lists = differing(chosen_lists(a), chosen_lists(b))  # sections with another order do not differ
    return [ConfigDifference(key, x, y, numerical(key)) for key, x, y in (*lists, *differing(a, b))]
