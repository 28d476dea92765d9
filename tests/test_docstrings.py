"""Every public name is documented, every example runs, and the README's example is the one that runs here."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import pytest

import glmvae

pytestmark = pytest.mark.any_precision

MODULES = [importlib.import_module(info.name) for info in pkgutil.walk_packages(glmvae.__path__, prefix="glmvae.")] + [
    glmvae
]
EXAMPLES = [
    test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    if test.examples
]
PUBLIC = {name: value for name, value in vars(glmvae).items() if not name.startswith("_") and callable(value)}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_the_example_runs(example):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    output = []
    with jax.enable_x64(False):  # examples show JAX as it comes
        doctest.DocTestRunner(optionflags=flags).run(example, out=output.append)
    assert not output, "".join(output)


def test_examples_were_found():
    assert len(EXAMPLES) > 25


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_say_what_they_are(name):
    text = inspect.getdoc(PUBLIC[name])
    assert text
    if inspect.isfunction(PUBLIC[name]):
        for section in ("Args:", "Returns:", "Exactness:", "Example:"):
            assert section in text, f"{name} has no {section}"
