"""The verb plot: what it draws of traces and policies, says of what it can draw, and refuses."""

import pytest
from pages_by_hand import CONTRIBUTIONS
from tables_by_hand import TABLES
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.cli.plot import Kind

FINE = 0


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory):
    trace = trace_by_hand().with_tables(TABLES | {"contributions": CONTRIBUTIONS})
    return trace.save(tmp_path_factory.mktemp("trace") / "trace.h5")


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.policy])
def test_plot_draws_a_figure(trace_file, folder, run, kind):
    result = run("plot", trace_file, kind, "-o", f"{kind}.svg", "-p", "float16")
    assert result.exit_code == FINE, result.output
    assert f"Figure written to {kind}.svg" in result.stderr
    assert (folder / f"{kind}.svg").read_bytes().startswith(b"<?xml")


def test_plot_refuses_before_it_draws(trace_file, folder, run, refused):
    assert run("plot", trace_file, "-o", "growth.svg", "--block", "products.*", "-q").output == ""
    refused(run("plot", trace_file, "-o", "growth.svg"), "growth.svg", "exists", "--force")
    refused(run("plot", trace_file, "blocks", "-o", "figure.txt"), "suffix", ".png")
    refused(run("plot", trace_file, "forces", "-p", "bfloat16", "-o", "b.svg"), "no bfloat16", "float16")
    refused(run("plot", trace_file, "contributions", "--block", "layers.*", "-o", "b.svg"), "layers.*", "geometry")
    assert not (folder / "b.svg").exists()


def test_plot_says_how_to_make_what_a_trace_lacks(tmp_path, run, refused):
    bare = trace_by_hand().save(tmp_path / "bare.h5")
    refused(run("plot", bare, "budget", "-o", "b.svg"), "budget", "digits", "audit --explain")
    refused(run("plot", bare, "bits", "-o", "b.svg"), "sweep", "precision-probe sweep -o")


def test_plot_draws_what_a_policy_was_chosen_from(folder, run, refused):
    candidates = {name: {"seconds": 0.1, "forces": 1e-6} for name in ("mixed", "float32")}
    pp.Policy((), evidence={"chosen": "mixed", "candidates": candidates}).save(folder / "policy.json")
    assert run("plot", "policy.json", "policy", "-o", "policy.svg").exit_code == FINE
    assert "<!-- mixed -->" in (folder / "policy.svg").read_text(encoding="utf-8")
    refused(run("plot", "policy.json", "policy", "-p", "float32", "-o", "b.svg"), "--precisions", "out")
    refused(run("plot", "none.json", "policy", "-o", "b.svg"), "none.json", "cannot be read")


def test_help_says_what_each_figure_shows(run):
    lines = run("plot", "--help").output.splitlines()
    assert {kind.value for kind in Kind} <= {line.strip(" │-").partition(":")[0] for line in lines}
