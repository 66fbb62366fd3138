"""Take the picture of a page that opens the README: the demo audit's, in a browser.

    precision-probe audit demo demo --explain -o demo.h5
    python benchmarks/report_picture.py demo.h5 docs/figures/report-demo.png

Needs playwright, and Chromium on the PATH.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import precision_probe as pp

_SIZE = {"width": 1240, "height": 1500}  # pixels: the verdict, and where the error grows


def main() -> None:
    """Write the page of a trace, open it, and save what is seen first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        with pp.open_trace(arguments.trace) as trace:
            page_file = pp.write_report(trace, Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=_SIZE)
        page.goto(page_file.as_uri())
        page.screenshot(path=arguments.picture)
        browser.close()


if __name__ == "__main__":
    main()
