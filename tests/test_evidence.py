"""The page of evidence says what the figures say, and no more."""

from __future__ import annotations

import json

import pytest

from fac_lightning.evaluation import Claim, Column, Evidence, Experiment


def results(folder, name, values):
    for seed, value in enumerate(values):
        (folder / f"{name}-{seed}").mkdir()
        (folder / f"{name}-{seed}" / "results.json").write_text(json.dumps({"sets": {"unseen": {"exact": value}}}))


def experiment(folder, *claims, **options):
    rows = {
        label: {"evaluation": f"{folder}/{name}-*/results.json"}
        for label, name in (("k = 5", "five"), ("k = 1", "one"))
    }
    columns = {"exact (%)": Column("evaluation", "sets/unseen/exact", 100)}
    return Experiment("Grouping", "fac run tiny/paper", rows, columns, list(claims), **options)


def claim(**options):
    return Claim("Five frames a position hear better (report, table 7).", "exact (%)", "k = 5", "k = 1", **options)


@pytest.mark.parametrize(
    ("five", "one", "options", "verdict"),
    [
        ([0.80, 0.82, 0.81], [0.60, 0.62, 0.61], {}, "shown"),
        ([0.60, 0.90, 0.75], [0.60, 0.95, 0.70], {}, "not shown"),
        ([0.60, 0.62, 0.61], [0.80, 0.82, 0.81], {}, "opposite"),
        ([0.60, 0.62, 0.61], [0.80, 0.82, 0.81], {"higher": False}, "shown"),
        ([0.79, 0.80], [0.80, 0.81], {"tie": 2}, "shown"),
        ([0.70, 0.71], [0.80, 0.81], {"tie": 2}, "not shown"),
        ([0.9], [0.1], {}, "one seed only"),
        ([0.9, float("nan")], [0.1, 0.2], {}, "not shown"),  # nothing was said, so there is no rate of errors
        ([], [0.1, 0.2], {}, "no figures yet"),
    ],
)
def test_a_claim_is_judged_by_mean_and_spread(tmp_path, five, one, options, verdict):
    results(tmp_path, "five", five)
    results(tmp_path, "one", one)
    job = Evidence(str(tmp_path / "out"), {"grouping": experiment(tmp_path, claim(**options))})
    assert job.run() == {"grouping": [verdict]}
    assert f"**{verdict.capitalize()}**" in (tmp_path / "out" / "evidence.md").read_text()


def test_the_page_has_means_spreads_commands_and_a_plot(tmp_path):
    results(tmp_path, "five", [0.8, 0.9, 1.0])
    job = Evidence(str(tmp_path / "out"), {"grouping": experiment(tmp_path, claim())}, about="Two cores.")
    job.run()
    page = (tmp_path / "out" / "evidence.md").read_text()
    assert "| k = 5 | 90.0 ± 10.0 | 3 |" in page
    assert "| k = 1 | not run | 0 |" in page
    assert "fac run tiny/paper" in page
    assert "Two cores." in page
    assert (tmp_path / "out" / "evidence-grouping.png").stat().st_size > 1000
    stored = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert stored["grouping"]["rows"]["k = 5"]["exact (%)"] == pytest.approx([80, 90, 100])


def test_what_cannot_be_read_is_told(tmp_path):
    results(tmp_path, "five", [0.5])
    (tmp_path / "five-0" / "results.json").write_text('{"sets": {"seen": {}}}')
    with pytest.raises(ValueError, match=r"has no sets/unseen/exact: at 'unseen' there is only seen"):
        Evidence(str(tmp_path / "out"), {"grouping": experiment(tmp_path)}).run()
    with pytest.raises(ValueError, match="a claim names the row 'k = 7'; there are k = 5, k = 1"):
        experiment(tmp_path, Claim("", "exact (%)", "k = 7", "k = 1"))
    with pytest.raises(ValueError, match=r"plot takes two columns of exact \(%\), got \['x', 'y'\]"):
        experiment(tmp_path, plot=["x", "y"])
    with pytest.raises(ValueError, match="there is nothing to show"):
        Evidence(str(tmp_path), {})
