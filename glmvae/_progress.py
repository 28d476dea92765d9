"""A bar for long work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from glmvae._optional import optional


@contextlib.contextmanager
def bar(progress: bool, total: int, name: str, unit: str) -> Iterator[Callable[[float], None]]:
    """A function to call with the objective after every round.

    Raises:
        ImportError: ``progress`` without tqdm.
    """
    if not progress:
        yield lambda value: None
        return
    with optional("tqdm", "progress").tqdm(total=total, desc=name) as shown:

        def report(value: float) -> None:
            shown.set_postfix_str(f"{value:.6g} {unit}", refresh=False)
            shown.update()

        yield report
