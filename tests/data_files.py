"""Tests that need the real MNIST or Frey files, which do not ship with the repository."""

import os
from pathlib import Path

import pytest


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip without these files in GLMVAE_DATA_DIR."""
    folder = os.environ.get("GLMVAE_DATA_DIR")
    missing = [name for name in names if not (folder and Path(folder, name).is_file())]
    return pytest.mark.skipif(bool(missing), reason=f"GLMVAE_DATA_DIR holds no {', '.join(missing)}")


needs_frey = needs("frey_rawface.mat")
