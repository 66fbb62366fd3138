"""What is shown of the main objects: in a line or a few, and in notebooks as tables in which texts are texts."""

from html.parser import HTMLParser

import pandas as pd
import pytest

import precision_probe as pp
from precision_probe.notebook import as_html
from precision_probe.search.recommendation import Recommendation

POLICY = pp.Policy((pp.Rule("interactions.*", "float32"),), {"forces": 1e-3}, {"chosen": "mixed 1"})


class Cells(HTMLParser):
    """The tags, and the texts of cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def probe(water):
    with pp.attach("demo", precisions="float32", blocks="readouts.*", modes="propagated", device="cpu") as attached:
        attached.run(water, progress=False)
    return attached


@pytest.fixture(scope="module")
def water():
    import ase.build

    atoms = ase.build.molecule("H2O")
    atoms.info["name"] = "<script>alert(1)</script>"
    return atoms


@pytest.fixture
def recommendation():
    row = {"forces": 2e-4, "energy": 1e-6, "vs_float32": 1.25}
    return Recommendation(POLICY, pd.DataFrame({"mixed 1": row}).T, pd.DataFrame(), ("a < b",))


def test_texts_stay_texts():
    shown = as_html("<b>", {"<script>": "\x1b[31m & <i>"})
    assert Cells(shown).tags == {"table", "caption", "tr", "th", "td"}
    assert Cells(shown).texts == ["<b>", "<script>", "\\x1b[31m & <i>"]


def test_what_is_shown_is_short_and_says_what_it_is(probe, recommendation):
    assert repr(POLICY) == "<Policy: interactions.* float32; made for forces 0.001>"
    assert repr(pp.Policy(())) == "<Policy: no rules: float64>"
    assert repr(recommendation) == f"<Recommendation of 1 candidates: mixed 1, {POLICY!r}>"
    assert repr(probe) == (
        "<Probe of demo: precisions: float64, float32; structures recorded: 1; hooks: removed; device: cpu>"
    )
    assert repr(probe.trace()) == "<Trace of demo: 1 structures, 2 blocks, float32>"


def test_notebooks_have_tables(probe, recommendation):
    for shown in (POLICY, probe, probe.trace(), recommendation):
        assert Cells(shown._repr_html_()).tags == {"table", "caption", "tr", "th", "td"}
    texts = Cells(recommendation._repr_html_()).texts
    assert {"mixed 1", "0.0002 eV/Å", "0.001 meV/atom", "1.25", "a < b", "interactions.*", "float32"} <= set(texts)
    of_trace = Cells(probe.trace()._repr_html_()).texts
    assert of_trace[of_trace.index("blocks") + 1] == "readouts.0, readouts.1"
    assert of_trace[of_trace.index("kept") + 1] == "tensors"
