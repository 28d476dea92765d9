"""The manual: every page keeps its rules and says what to do, the reference has every public name.

The cells of every page run, and its links are followed, where the site is built, a lane of its own of what must pass:
``python -m sphinx -W -b html notebooks dist/manual`` stops at the first cell that fails.
"""

import importlib
import inspect
import pathlib
import re

import pytest

import glmvae

pytestmark = pytest.mark.any_precision

MANUAL = pathlib.Path(__file__).parent.parent / "notebooks"
TEXTS = {path.stem: path.read_text() for path in sorted(MANUAL.glob("*.md"))}
INDEX = TEXTS.pop("index")
PAGES = {name: text for name, text in TEXTS.items() if "{code-cell}" in text}
REFERENCE = {path.stem: path.read_text() for path in sorted((MANUAL / "reference").glob("*.rst"))}
DOCUMENTED = {name for text in REFERENCE.values() for name in re.findall(r"^\.\. auto\w+:: (\S+)", text, re.M)}
MODULES = ("families", "nets", "initializers", "training", "monitor", "plots", "datasets", "estimator")
#: What modules need of one another, and no user.
INSIDE: set[str] = set()
LONGEST = 15
#: Pages that are read, not looked at.
WITHOUT_PICTURE = ("keeping", "mathematics", "sharp-bits")


def cells(text):
    """(number of the line, tags, code) of every code cell."""
    for found in re.finditer(r"^```\{code-cell\} python\n((?::\w+:[^\n]*\n)*)(.*?)^```$", text, re.S | re.M):
        yield text[: found.start(2)].count("\n"), found[1], found[2]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_keeps_the_rules(page):
    text, found = PAGES[page], list(cells(PAGES[page]))
    assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n# ")
    assert len(found) == text.count("{code-cell}"), "a cell that this test does not see"
    too_long = [line for line, _, code in found if len(code.strip().splitlines()) > LONGEST]
    assert not too_long, f"cells of more than {LONGEST} lines, at lines {too_long}"
    for line, _, code in found:
        compile("\n" * line + code, f"notebooks/{page}.md", "exec")
    assert any(re.search(r"^ *assert ", code, re.M) for _, _, code in found)
    assert re.search(r"^\*[^*]+\*$", text.split("\n# ")[1], re.M), "no question in the reader's words"
    assert "## What to do\n" in text
    if page not in WITHOUT_PICTURE:
        assert any("hide-input" in tags for _, tags, _ in found), "no picture"
        assert "## Exact, and predicted\n" in text


def test_the_index_lists_every_page():
    listed = re.findall(r"^([a-z*/-]+)$", "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", INDEX, re.S)), re.M)
    assert {"start", "reference/index"} <= set(listed)
    assert set(PAGES) <= set(listed)
    others = set(TEXTS) - set(PAGES)
    assert all(any(pathlib.PurePath(page).match(pattern) for pattern in listed) for page in others)
    assert set(REFERENCE) - {"index"} == set(re.findall(r"^   ([a-z-]+)$", REFERENCE["index"], re.M))


def _is_of(name, value, module):
    """Whether it is defined in that module, or handed on by it (``import name as name``)."""
    home = getattr(value, "__module__", "")
    if home == f"glmvae.{module}":
        return True
    text = pathlib.Path(importlib.import_module(f"glmvae.{module}").__file__).read_text()
    return home.startswith(f"glmvae.{module}.") and re.search(rf"import {name} as {name}$", text, re.M) is not None


def test_every_public_name_is_in_the_reference():
    wanted = {
        f"glmvae.{name}" for name, value in vars(glmvae).items() if name[0] != "_" and not inspect.ismodule(value)
    }
    for module in MODULES:
        members = vars(importlib.import_module(f"glmvae.{module}")).items()
        wanted |= {
            f"glmvae.{module}.{name}"
            for name, value in members
            if name[0] != "_" and callable(value) and _is_of(name, value, module)
        }
    assert wanted - INSIDE <= DOCUMENTED, sorted(wanted - INSIDE - DOCUMENTED)


def test_the_reference_names_what_exists():
    for name in sorted(DOCUMENTED):
        module, _, last = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), last), name
