"""The committed page of findings is made from the committed results."""

import findings
import findings_page
from runs import ROOT

FIGURES = {"findings-bits.png", "findings-budget.png", "findings-energy.png"}


def test_committed_page_is_what_the_committed_results_give(tmp_path):
    findings_page.write(findings.RESULTS, tmp_path)
    page = "what-we-learned.md"
    written, committed = (folder / page for folder in (tmp_path, ROOT / "docs"))
    assert written.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8"), "run findings.py write"
    figures = {path.name: path for path in (ROOT / "docs" / "figures").glob("findings-*")}
    assert set(figures) == FIGURES
    assert all(path.stat().st_size < 120_000 for path in figures.values())
