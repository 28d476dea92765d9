"""What the README shows is what happens."""

import contextlib
import importlib
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glmvae
from glmvae.families import Bernoulli

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


def test_everything_in_code_type_has_a_place():
    names = set(re.findall(r"`(\w+)`", TEXT[TEXT.index("## What is exact") : TEXT.index("- **Keep a model**")]))
    names -= {"x", "spawn"}
    assert len(names) > 20
    for name in names:
        assert hasattr(glmvae, name) or importlib.import_module(f"glmvae.{name}")


def test_the_table_of_transformations_holds_at_its_edges():
    x = jnp.asarray(np.random.default_rng(0).binomial(1, 0.4, size=(30, 4)), jnp.float32)
    optimum = glmvae.fit(x, Bernoulli(), 2)

    def best(x):
        return glmvae.best_posterior(optimum, x).mean.sum()

    assert np.isfinite(jax.jit(best)(x))
    assert np.isfinite(jax.vmap(best)(x[None])).all()
    with pytest.raises(ValueError, match="Reverse-mode differentiation"):
        jax.grad(best)(x)
    for function in (glmvae.refine, glmvae.tighten):
        with pytest.raises(TypeError, match="runs on the host"):
            jax.jit(lambda x, function=function: function(optimum, x).model.loadings)(x)
