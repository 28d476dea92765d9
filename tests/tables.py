"""Tables of cases inside one test: every case is run, and those that fail are named."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any


def refused(call: Callable[[], Any], error: type[Exception], message: str) -> str:
    """Empty if the call raises that very error with that message (a pattern), else what happened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = call()
    except Exception as raised:
        if type(raised) is error and re.search(message, str(raised)):
            return ""
        return f"{type(raised).__name__}: {raised}"
    return f"no error but {result!r:.80}"


def all_refused(cases: Iterable[tuple[Callable[[], Any], type[Exception], str]]) -> None:
    """Every (call, error, message) of the table raises as it says."""
    found = {f"case {i}, {message}": refused(call, error, message) for i, (call, error, message) in enumerate(cases)}
    assert len(found) > 1
    wrong = {name: what for name, what in found.items() if what}
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
