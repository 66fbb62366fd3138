"""page.py: one file that asks nobody for anything, in which what comes from a trace is text, and numbers are right."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from pages_by_hand import CONTRIBUTIONS, of_many, of_two, parsed, table, with_nan
from tables_by_hand import TABLES
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.exceptions import InputError
from precision_probe.report.page import render

HOSTILE = "<script>alert(1)</script>"


def hostile():
    """A trace that has markup wherever a file can have text."""
    trace = trace_by_hand(model_name=HOSTILE, device="<img src=x onerror=alert(1)>", failures=json.dumps([HOSTILE]))
    trace.tree["structures/name"].values[:] = [HOSTILE, "'\"</style>"]
    trace.tree.attrs["complete"] = "false"
    return trace


class Module(torch.nn.Module):
    """Two layers that are no MACE."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 4).double(), torch.nn.Linear(4, 2).double()

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def of_module():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, x = Module(), torch.randn(5, 3, dtype=torch.float64)
    with pp.attach(module, precisions="float32", device="cpu", call=lambda model, x: model(x), blocks="*") as probe:
        probe.run([x], progress=False)
    return probe.trace()


TRACES = {
    "by hand": lambda: trace_by_hand().with_tables(TABLES | {"contributions": CONTRIBUTIONS}),
    "with NaN": with_nan,
    "hostile": hostile,
    "no MACE": of_module,
    "many": lambda: of_many(500),
}


@pytest.fixture(scope="module", params=TRACES)
def page(request):
    """The page of each of these, as text and as it is parsed."""
    text = render(TRACES[request.param]())
    return text, parsed(text)


def test_nothing_is_asked_of_the_network(page):
    text, parts = page
    links = [value for each in parts.all() for name, value in each.attributes.items() if name in ("href", "src")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"https?://|url\(|@import", text)
    assert len(text.encode()) < 2e6


def test_a_policy_admits_the_pages_own_script_and_style_alone(page):
    _, parts = page
    (policy,) = (each.attributes["content"] for each in parts.all("meta") if "http-equiv" in each.attributes)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for tag in ("style", "script"):
        (own,) = parts.all(tag)
        digest = base64.b64encode(hashlib.sha256(own.text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not [each for each in parts.all() if any(n == "style" or n.startswith("on") for n in each.attributes)]


def test_what_comes_from_a_trace_is_text():
    parts = parsed(render(hostile()))
    assert len(list(parts.all("script"))) == 1
    assert not list(parts.all("img"))
    assert HOSTILE in parts.by_id("structures").text
    assert HOSTILE in next(parts.all("h1")).text
    assert "The run is not complete" in parts.by_id("verdict").text


def test_every_figure_says_what_it_shows_and_has_its_numbers(page):
    _, parts = page
    for figure in parts.all("figure"):
        (drawing,) = figure.all("svg")
        first, second = (each for each in drawing.children[:2])
        assert (first.tag, second.tag) == ("title", "desc")
        assert first.text
        assert drawing.attributes["aria-label"] == f"{first.text}. {second.text}"
        assert drawing.attributes["role"] in ("img", "group")
        (numbers,) = figure.all("table")
        assert list(numbers.all("td"))
    names = [each.attributes["id"] for each in parts.all() if "id" in each.attributes]
    assert len(names) == len(set(names))
    links = [each.attributes["href"].removeprefix("#") for each in parts.all("a")]
    assert [each.attributes["id"] for each in parts.all("section")] == links


def test_numbers_are_those_of_errors_and_summary():
    trace = trace_by_hand()
    parts, errors, summary = parsed(render(trace)), pp.errors(trace), pp.summary(trace).loc["float16"]
    whole = table(parts, "The model as a whole: error against float64")["float16"]
    assert whole["energy, meV/atom"] == 1e3 * summary["energy"]
    assert whole["forces, largest, meV/Å"] == 1e3 * summary["forces"]
    assert whole["forces, mean, meV/Å"] == 1e3 * summary["forces_mae"]
    for title, mode in (
        ("in the whole model", "propagated"),
        ("each block alone, on float64's inputs rounded", "isolated"),
    ):
        row = table(parts, f"Block × precision, {title}: rel_l2")["products.0"]
        for arrow, direction in (("→", "forward"), ("←", "backward")):
            of_block = errors[(errors[["mode", "block", "direction"]] == [mode, "products.0", direction]).all(axis=1)]
            assert row[f"float16 {arrow}"] == of_block["rel_l2"].max()
    along = table(parts, "Forward: outputs, in the order in which blocks run")
    assert list(along) == ["products.0", "energy"]
    np.testing.assert_allclose(along["energy"]["float16: √n·u"], 2**-11 * np.sqrt(2))
    by_irrep = pp.errors(trace, by="irrep").query(
        "mode == 'propagated' and direction == 'forward' and block != 'model'"
    )
    shown = table(parts, "float16: outputs by order l and parity")["products.0"]
    assert shown == dict(zip(by_irrep["irrep"], by_irrep["rel_l2"], strict=True))


@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
def test_a_precision_has_the_colour_that_it_has_in_figures(name):
    trace = of_two()
    text = render(trace)
    coloured = dict(re.findall(r"^\.(s\d)\{--c:(#\w+)\}", text, re.MULTILINE)) | {"": "black"}  # of text
    marks = [each for each in parsed(text).all() if each.attributes.get("class", "").startswith("mark")]
    said = [(next(mark.all("title"), None), mark.attributes["class"].removeprefix("mark").strip()) for mark in marks]
    colours = {coloured[slot] for title, slot in said if title and re.search(rf"(^|, ){name}: ", title.text)}
    (line,) = (each for each in pp.plot_times(trace).lines if each.get_label() == name)
    assert colours == {line.get_color()}


def test_the_tolerance_decides():
    error = 1e3 * pp.summary(trace_by_hand()).loc["float16", "forces"]
    for limit, mark in (
        (1.01, "✓ float16: within the tolerance."),
        (0.99, "✗ float16: beyond the tolerance in forces"),
    ):
        parts = parsed(render(trace_by_hand(), tolerance={"forces": limit * error / 1e3}))
        assert next(parts.by_id("verdict").all("strong")).text.startswith(mark)
        assert "a guide" not in parts.by_id("verdict").text
    assert "a guide" in parsed(render(trace_by_hand())).by_id("verdict").text


def test_what_makes_most_of_an_error_is_named():
    parts = parsed(render(trace_by_hand().with_tables({"contributions": CONTRIBUTIONS})))
    verdict = parts.by_id("verdict").text
    assert re.search(r"energy \S+ meV/atom of 1 allowed, 75 % of it in the sums of energies;", verdict)
    assert re.search(r"forces \S+ meV/Å of 10 allowed, 90 % of it in geometry\.", verdict)
    blocks = table(parts, "float16: the numbers of each block")
    assert list(blocks) == ["geometry", "products.0", "sums"]
    assert [row["share of forces"] for row in blocks.values()] == [0.9, 0.2, 0.0]
    labels = [each.attributes["aria-label"] for each in parts.by_id("network").all("g") if "data-x" in each.attributes]
    assert labels[0] == "geometry; share of forces 90.0%; share of energy 0.0%"


def test_nan_is_seen():
    parts = parsed(render(with_nan()))
    verdict = parts.by_id("verdict").text
    assert "beyond the tolerance in forces (not finite)" in verdict
    assert "NaN meV/Å" in verdict
    assert "1 of its results are NaN or infinite" in verdict
    cells = table(parts, "Block × precision, in the whole model: rel_l2")["products.0"]
    assert np.isnan(cells["float16 →"])
    assert np.isfinite(cells["float16 ←"])
    charts = [each.text for each in parts.by_id("growth").all("svg")]
    assert "NaN" in charts[0]


def test_sections_without_data_are_absent():
    def names(trace):
        return [each.attributes["id"] for each in parsed(render(trace)).all("section")]

    assert names(trace_by_hand()) == ["verdict", "growth", "network", "causes", "structures", "cost", "provenance"]
    assert names(of_many(2)) == ["verdict", "structures", "provenance"]
    assert names(of_module()) == ["verdict", "growth", "network", "provenance"]


def test_of_many_structures_the_worst_are_named():
    parts = parsed(render(of_many(500), tolerance={"forces": 10.5e-3}))
    worst = table(parts, "Largest error of a force, structure by structure (meV/Å): the 10 worst of 500")
    assert list(worst) == [f"molecule {at}" for at in range(499, 489, -1)]
    np.testing.assert_allclose(worst["molecule 499"]["float16"], 500)
    # of 500 structures 10 are within 10.5 meV/Å; Clopper and Pearson's limit by SciPy's own test
    from scipy.stats import binomtest

    least = binomtest(10, 500).proportion_ci(0.9, method="exact").low  # two-sided 90 %: one-sided 95 %
    said = f"In forces it is within on 10 of 500 structures: on at least {int(100 * least)} % of others"
    assert said in parts.by_id("verdict").text


def test_a_policy_is_shown_beside_what_it_was_chosen_from():
    row = {"rules": "* float32", "energy": 1e-5, "forces": 2e-4, "seconds": 0.01, "vs_float64": 1.9}
    evidence = {
        "chosen": "mixed",
        "candidates": {"mixed": row, "model.to(float64)": row | {"seconds": 0.02, "forces": 0.0}},
    }
    evidence["tested"] = {"within": 3, "structures": 4}
    policy = pp.Policy((pp.Rule("interactions.*", "float32"),), {"forces": 1e-3}, evidence, {"sha256": "0"})
    parts = parsed(render(trace_by_hand(), policy=policy))
    cost = parts.by_id("cost")
    assert "Recommended (mixed): interactions.* in float32; the rest is float64." in cost.text
    assert "on 3 of 4 structures that it was tested on" in cost.text
    assert "other weights" in cost.text
    shown = table(cost, "What the search measured; ✓ what it recommends")
    assert shown["mixed ✓"]["time, ms"] == 10
    assert shown["mixed ✓"]["forces, largest, meV/Å"] == 0.2
    assert shown["model.to(float64)"]["times faster than float64"] == 1.9
    assert "forces 1 meV/Å (as given)" in parts.by_id("verdict").text
    by_hand = pp.Policy((pp.Rule("*", "float32"),), {}, {"candidates": ["nonsense"], "chosen": 3})
    assert "Recommended: * in float32" in parsed(render(trace_by_hand(), policy=by_hand)).by_id("cost").text


def test_what_changed_from_one_trace_to_another():
    ours, theirs = trace_by_hand(), trace_by_hand(device="cuda")
    parts = parsed(render(ours, other=theirs)).by_id("comparison")
    assert next(parts.all("strong")).text == "✓ Equivalent:"
    assert table(parts, "What differs between the traces")["device"]["B"] == "cuda"
    for name in ("float64", "float16"):
        theirs.tree[f"propagated/{name}/products.0.output"].values[:] *= 1.01
    parts = parsed(render(ours, other=theirs)).by_id("comparison")
    assert next(parts.all("strong")).text.startswith("✗ Not equivalent")
    row = table(parts, "float64: B − A, block by block")["products.0"]
    np.testing.assert_allclose(row["B − A"], 0.01)
    compared = pp.compare_traces(ours, theirs)
    assert table(parts, "What rounding does not explain").keys() == set(compared["block"][~compared["equivalent"]])
    with pytest.raises(InputError, match="structures"):
        render(ours, other=of_many(3))


def test_a_file_appears_whole_and_is_replaced_only_if_asked(tmp_path):
    path = pp.write_report(trace_by_hand(), tmp_path / "page.html")
    assert path.read_text(encoding="utf-8") == render(trace_by_hand())
    with pytest.raises(InputError, match="exists"):
        pp.write_report(trace_by_hand(), path)
    pp.write_report(trace_by_hand(), path, force=True)
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_float64_alone_is_refused():
    with pytest.raises(InputError, match="float64 alone"):
        render(trace_by_hand(precisions=json.dumps(["float64"])))
