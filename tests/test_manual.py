"""The manual: every code cell of every page runs, every page says what to do, the reference has every public name.

Cells of a page run here, one page after the other in one process, so that what is compiled is shared. The site itself,
links and all, is built by ``python -m sphinx -W -b html notebooks dist/manual``.
"""

import importlib
import importlib.util
import inspect
import pathlib
import re

import jax
import matplotlib.pyplot as plt
import pytest

import glmvae

pytestmark = pytest.mark.any_precision

MANUAL = pathlib.Path(__file__).parent.parent / "notebooks"
TEXTS = {path.stem: path.read_text() for path in sorted(MANUAL.glob("*.md"))}
INDEX = TEXTS.pop("index")
PAGES = {name: text for name, text in TEXTS.items() if "{code-cell}" in text}
REFERENCE = {path.stem: path.read_text() for path in sorted((MANUAL / "reference").glob("*.rst"))}
DOCUMENTED = {name for text in REFERENCE.values() for name in re.findall(r"^\.\. auto\w+:: (\S+)", text, re.M)}
MODULES = ("families", "nets", "initializers", "training", "monitor", "plots", "datasets")
HAS_TORCH = importlib.util.find_spec("torch") is not None
#: What modules need of one another, and no user.
INSIDE = {"glmvae.monitor.require_density"}
LONGEST = 15
#: Pages that are read, not looked at.
WITHOUT_PICTURE = ("mathematics", "sharp-bits")


def cells(text):
    """(number of the line, tags, code) of every code cell."""
    for found in re.finditer(r"^```\{code-cell\} python\n((?::\w+:[^\n]*\n)*)(.*?)^```$", text, re.S | re.M):
        yield text[: found.start(2)].count("\n"), found[1], found[2]


@pytest.mark.parametrize("page", PAGES)
def test_every_cell_runs(page, monkeypatch):
    monkeypatch.chdir(MANUAL)
    names = {"__name__": "__main__"}
    with jax.enable_x64(False):  # as JAX comes
        for line, tags, code in cells(PAGES[page]):
            program = compile("\n" * line + code, f"notebooks/{page}.md", "exec")
            if HAS_TORCH or "needs-torch" not in tags:
                exec(program, names)
            plt.close("all")


@pytest.mark.parametrize("page", PAGES)
def test_the_page_keeps_the_rules(page):
    text, found = PAGES[page], list(cells(PAGES[page]))
    assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n# ")
    assert len(found) == text.count("{code-cell}"), "a cell that this test does not see"
    too_long = [line for line, _, code in found if len(code.strip().splitlines()) > LONGEST]
    assert not too_long, f"cells of more than {LONGEST} lines, at lines {too_long}"
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


def test_every_public_name_is_in_the_reference():
    wanted = {
        f"glmvae.{name}" for name, value in vars(glmvae).items() if name[0] != "_" and not inspect.ismodule(value)
    }
    for module in MODULES:
        members = vars(importlib.import_module(f"glmvae.{module}")).items()
        wanted |= {
            f"glmvae.{module}.{name}"
            for name, value in members
            if name[0] != "_" and callable(value) and getattr(value, "__module__", "") == f"glmvae.{module}"
        }
    assert wanted - INSIDE <= DOCUMENTED, sorted(wanted - INSIDE - DOCUMENTED)


def test_the_reference_names_what_exists():
    for name in sorted(DOCUMENTED):
        module, _, last = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), last), name
