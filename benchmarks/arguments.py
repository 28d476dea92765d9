"""What both commands read from their command lines."""

from __future__ import annotations

import argparse


def whole(text: str, least: int) -> int:
    """A whole number of at least so much; of anything else argparse tells what this says."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected an integer, {least} or more, got {text!r}")
    return int(text)
