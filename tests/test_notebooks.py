"""The notebooks run again, from top to bottom, and keep the outputs they were committed with."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.any_precision

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("default")  # of the Jupyter machinery; the notebook's own process has its own filters
def test_the_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any("assert" in cell.source for cell in cells)
    assert all(cell.execution_count for cell in cells), "committed without its outputs"
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()


def test_there_is_a_notebook():
    assert "quickstart" in [path.stem for path in NOTEBOOKS]
