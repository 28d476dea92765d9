"""The manual's page over the reproduced runs says what their stored results say, and its figures are of them."""

import re

import pytest
from test_reproduce_claims import FLAT, changed, named, result

from benchmarks import __main__ as command
from benchmarks.reproduce import claims, figures, measures, page, runner
from benchmarks.reproduce.command import PAGE, RESULTS
from benchmarks.reproduce.setups import all_setups

pytestmark = pytest.mark.any_precision

MEGABYTES = 5
AGAIN = "python -m benchmarks reproduce --page writes them again"


@pytest.fixture(scope="module")
def stored():
    return measures.load(RESULTS)


@pytest.fixture(scope="module")
def made_up():
    return [result(setup) for setup in all_setups()]


def source_of(png):
    """What a figure says it was drawn from."""
    return re.search(rb"tEXtSource\0([0-9a-f]{16})", png.read_bytes()).group(1).decode()


def test_the_page_agrees_with_the_stored_results(stored):
    assert RESULTS.with_name(PAGE).read_text() == page.text(stored), AGAIN


def test_the_readme_agrees_with_the_stored_results(stored):
    text = (RESULTS.parents[1] / "README.md").read_text()
    assert " ".join(page.readme(stored).split()) in " ".join(text.split()), AGAIN
    assert re.search(r"\(notebooks/reproduced/figures/([\w-]+)\.png\)", text).group(1) in figures.plan(stored)


def test_the_figures_are_of_the_stored_results(stored):
    there = {png.stem: source_of(png) for png in (RESULTS / "figures").glob("*.png")}
    assert there == {name: figure.digest for name, figure in figures.plan(stored).items()}, AGAIN
    linked = re.findall(r"\]\(reproduced/figures/([\w-]+)\.png\)", page.text(stored))
    assert sorted(linked) == sorted(there)


def test_runs_of_one_model_are_held_against_the_same_lines(stored):
    lines = {}
    for run in stored:
        key = tuple(run["settings"][name] for name in ("data", "family", "latent_dim", "beta"))
        assert lines.setdefault(key, run["lines"]) == run["lines"], run["settings"]


def test_what_is_stored_is_whole_and_small(stored):
    files = list(RESULTS.glob("*.json"))
    assert len(files) == len(stored) > 0
    size = sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file())
    assert size + RESULTS.with_name(PAGE).stat().st_size < MEGABYTES * 2**20


def test_another_number_makes_another_page_and_another_figure(made_up):
    other = changed(made_up, "starts-frey-2-affine-he", elbo=FLAT - 0.5)
    assert page.text(other) != page.text(made_up)
    before, after = figures.plan(made_up), figures.plan(other)
    assert {name for name in before if before[name].digest != after[name].digest} == {"figure-01", "figure-10"}


def test_a_page_of_all_runs_says_all_claims_and_shows_all_figures(made_up):
    text = page.text(made_up)
    found = claims.all_claims(made_up)
    for number, claim in enumerate(found, 1):
        assert f"| {number} | {claim.title} | holds |" in text
        assert claim.measured.rstrip(".") in text
    ours = sum(not claim.paper for claim in found)
    paper = len(found) - ours
    assert f"Of the paper's {paper} claims {paper} hold; of our own {ours} claims {ours} hold. " in text
    assert f"{len(made_up)} of {len(made_up)} runs are done." in text
    assert text.count("![") == len(figures.plan(made_up)) == 13
    assert all(advice[0] in text and advice[1] not in text for advice in page.ADVICE.values())
    assert set(page.ADVICE) <= {claim.title for claim in found}
    assert "--list" not in text
    assert not re.search(r"\b(nan|inf|None|never)\b", text)


def test_a_page_of_no_run_says_so():
    text = page.text([])
    assert "11 claims 11 are not measured yet; of our own 3 claims 3 are not measured yet. 0 of 96 runs" in text
    assert "![" not in text
    assert "hold" not in text.split("## Claim by claim")[0]
    assert not re.search(r"\b(nan|inf)\b", text)


def test_a_claim_that_falls_turns_its_advice(made_up):
    other = changed(made_up, "annealing-frey-20-relu", units=9)
    text, advice = page.text(other), page.ADVICE["Annealing beta does not change the final count of active units"]
    assert "11 claims 10 hold, 1 does not hold; of our own 3 claims 3 hold." in text
    assert advice[1] in text
    assert advice[0] not in text


def test_one_command_writes_page_and_figures(made_up, tmp_path, capsys):
    folder = tmp_path / "reproduced"
    folder.mkdir()
    name = "annealing-synthetic-20-affine"
    runner.write(folder / f"{name}.json", named(made_up, name))
    assert command.main(["reproduce", "--page", "--results", str(folder)]) == 0
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        f"{name}.json", "annealing.png", PAGE,
    ]  # fmt: skip
    printed, found = capsys.readouterr().out, measures.load(folder)
    assert PAGE in printed
    assert page.readme(found) in printed
    assert (tmp_path / PAGE).read_text() == page.text(found)
    assert source_of(folder / "figures" / "annealing.png") == figures.plan(found)["annealing"].digest
