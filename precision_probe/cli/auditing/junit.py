"""An audit as a JUnit report, which CI servers show: one test for each precision and quantity that was judged."""

from pathlib import Path
from xml.etree import ElementTree as ET  # only to write: nothing is parsed

from precision_probe.analysis.errors import TOLERANCE_UNITS
from precision_probe.cli.auditing.verdict import Verdict
from precision_probe.exceptions import printable
from precision_probe.files import replacing, unwritable

__all__ = ["write_junit"]


def write_junit(verdict: Verdict, model: str, path: Path) -> None:
    """Write the report: failures are errors above their limits, an error is an audit that is not complete.

    Args:
        verdict: Of an audit with a tolerance.
        model: What it was of.
        path: The file; one that is there is replaced.

    Raises:
        InputError: If it cannot be written.
    """
    suite = ET.Element("testsuite", name=f"precision-probe audit {printable(model)}")
    over = verdict.over.set_index(["precision", "quantity"])
    for precision, row in verdict.summary.drop(index="float64").iterrows():
        for quantity, limit in verdict.limits.items():
            test = _test(suite, str(precision), quantity)
            text = f"error {row[quantity]:.2e}, tolerance {limit:.2e} {TOLERANCE_UNITS[quantity]}"
            if (precision, quantity) in over.index:
                ET.SubElement(test, "failure", message=text)
            else:
                ET.SubElement(test, "system-out").text = text
    for quantity, why in verdict.not_judged.items():
        ET.SubElement(_test(suite, "all precisions", quantity), "skipped", message=why)
    if verdict.failure is not None:
        ET.SubElement(_test(suite, "audit", "complete"), "error", message=printable(verdict.failure))
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(list(suite.iter(tag)))))
    try:
        with replacing(path) as temporary:
            ET.ElementTree(suite).write(temporary, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _test(suite: ET.Element, of: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=of, name=name)
