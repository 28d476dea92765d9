"""What the README shows is what happens."""

import contextlib
import importlib
import io
import pathlib
import re

import jax
import pytest

import glmvae

pytestmark = pytest.mark.any_precision

TEXT = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_prints_what_the_readme_says():
    code, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", TEXT, re.S).groups()
    assert len(code.strip().splitlines()) <= 12
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), jax.enable_x64(False):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == shown


def test_there_are_two_commands():
    commands = re.findall(r"```bash\n(.*?)\n```", TEXT, re.S)
    assert len(commands) == 2
    assert all(c.startswith("python3 -m venv .venv && .venv/bin/pip install") for c in commands)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"^\| `(\w+)\(", TEXT, re.M))))
def test_the_tables_name_functions_that_exist(name):
    assert callable(getattr(glmvae, name))


@pytest.mark.parametrize("name", re.findall(r"^\| `(\w+)` \|", TEXT, re.M))
def test_the_tables_name_modules_that_exist(name):
    importlib.import_module(f"glmvae.{name}")
