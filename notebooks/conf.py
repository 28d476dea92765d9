"""The manual's site: `python -m sphinx -W -b html notebooks dist/manual`, from the root of the repository.

Pages are MyST text whose code cells run while the site is built. What they print and draw is kept below dist/, in a
folder named after the library's source, so that a page runs again when it or the library has changed.
"""

import builtins
import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import re
from typing import Any

from docutils import nodes
from jupyter_cache import get_cache

import glmvae

ROOT = pathlib.Path(__file__).parent.parent
HAS_TORCH = importlib.util.find_spec("torch") is not None

project = "glmvae"
release = version = glmvae.__version__
html_title = "glmvae"
html_theme = "furo"
html_show_copyright = False
html_copy_source = False
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
exclude_patterns = ["reproduced", "data", "**.ipynb_checkpoints"]
nitpicky = True
suppress_warnings = ["toc.empty_glob"]  # a page that is made by a long run may not be there yet

# Pages ------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_raise_on_error = True
nb_execution_timeout = 1800
nb_execution_mode = "cache"


def _state() -> str:
    """A name for what pages compute with: the library's source, and whether PyTorch is there."""
    files = sorted((ROOT / "glmvae").rglob("*.py")) + sorted((ROOT / "notebooks" / "data").iterdir())
    content = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:16] + ("-torch" if HAS_TORCH else "")


nb_execution_cache_path = str(ROOT / "dist" / "manual-cells" / _state())
get_cache(nb_execution_cache_path).list_cache_records()  # made before pages are read side by side


def without_torch(app: Any, page: str, source: list[str]) -> None:
    """Where PyTorch is not installed its cells are shown, and not run."""
    if not HAS_TORCH and "needs-torch" in source[0]:
        said = "\\1\n\n```{note}\nPyTorch was not installed where this site was built: cells with it did not run.\n```"
        source[0] = re.sub(r"^(# .*)$", said, source[0], count=1, flags=re.M).replace("needs-torch", "skip-execution")


# Reference --------------------------------------------------------------------------------------------------

autodoc_typehints = "none"
autodoc_member_order = "bysource"
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [
    ("Fields", "params_style"),
    ("Attributes", "params_style"),
    "Exactness",
    "Cost",
    "Source",
]
_SECTION = re.compile(r"(Args|Fields|Attributes|Returns|Raises|Warns|Exactness|Cost|Example|Source|References):")


def equations(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Indented lines before the first section are formulas: shown as they stand."""
    if what in ("property", "attribute"):  # whose colon napoleon takes for the end of a type
        lines[:] = [line.replace(": ", "; ") for line in lines]
    shown: list[str] = []
    for i, line in enumerate(lines):
        line = re.sub(r"([\s(,])\*(\w+)(?![\w*])", r"\1\\*\2", line)  # *args is no emphasis
        if _SECTION.match(line):
            shown += lines[i:]
            break
        if line.startswith("    ") and (i == 0 or not lines[i - 1].strip()):
            shown += ["::", ""]
        shown.append(line)
    lines[:] = shown


def aliases(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples are described in their class."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def _found(name: str) -> Any:
    """The object of a dotted name of the library; None if there is none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            value = inspect.getattr_static(value, part, None)
        return value
    return None


def by_identity(app: Any, env: Any, node: Any, text: Any) -> Any:
    """A docstring names an object where it is made; the reference has it where it is imported from.

    What is not in the reference, a part of the inside, is shown as its name; what does not exist is an error.
    """
    target, owner = node.get("reftarget", ""), node.get("py:class")
    if node.get("refdomain") != "py":
        return None
    if all(hasattr(builtins, part.strip()) for part in target.split(",")):
        return text
    holder = _found(f"{node.get('py:module')}.{owner}") if owner else None
    if hasattr(holder, target) or target in getattr(holder, "__annotations__", {}):
        return text
    named = [target] if target.startswith("glmvae") else [f"{module}.{target}" for module in _modules()]
    for wanted in filter(lambda value: value is not None, map(_found, named)):
        for name, entry in env.get_domain("py").objects.items():
            if not inspect.ismodule(wanted) and _found(name) is wanted:
                page = app.builder.get_relative_uri(node.get("refdoc", env.docname), entry.docname)
                return nodes.reference("", "", text, internal=True, refuri=f"{page}#{entry.node_id}")
        return text
    return None


def _modules() -> list[str]:
    return ["glmvae", *(info.name for info in pkgutil.walk_packages(glmvae.__path__, "glmvae."))]


def setup(app: Any) -> None:
    # It copies files and keeps nothing between pages, so pages may be read side by side (-j 2)
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
    app.connect("source-read", without_torch)
    app.connect("autodoc-process-docstring", equations, priority=400)
    app.connect("autodoc-skip-member", aliases)
    app.connect("missing-reference", by_identity)
