"""Where the numbers come from, and the commands that make them again."""

import json
import shlex

from precision_probe.exceptions import printable
from precision_probe.report.content import Cell, Section, Table
from precision_probe.report.findings import Findings

__all__ = ["provenance"]

_MOST = 300  # characters of a value
_NAMES = 20  # structures named


def provenance(findings: Findings) -> Section:
    """The trace's attributes, the structures' names, and the commands."""
    attributes = findings.trace.attributes
    rows = tuple((printable(name), (Cell(_text(value)),)) for name, value in attributes.items())
    names = [printable(name) for name in findings.trace.structures["name"].values]
    more = f", … ({len(names)} in all)" if len(names) > _NAMES else ""
    rows += (("structures", (Cell(", ".join(names[:_NAMES]) + more),)),)
    commands = _commands(findings)
    text = (
        ["These commands make the numbers and this page again; STRUCTURES is the file they were in."]
        if commands
        else []
    )
    table = Table("What the trace says of itself", ("attribute", "value"), rows)
    return Section("provenance", "Where this comes from", [table], text, commands=commands)


def _text(value: object) -> str:
    text = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"


def _commands(findings: Findings) -> list[str]:
    """The audit of a model and structures, whose files the trace does not name; nothing of other modules' traces."""
    attributes, trace = findings.trace.attributes, findings.trace
    if "n_atoms" not in trace.structures or not trace.precisions:
        return []
    options = ["--precisions", ",".join(findings.precisions)]
    if attributes["modes"]:
        options += ["--modes", ",".join(attributes["modes"])]
    options += [option for key in ("keep", "device") for option in _option(key, attributes.get(key))]
    if "contributions" in trace.tables:
        options.append("--explain")
    model = printable(attributes.get("model_name") or "MODEL")
    file = findings.file or "trace.h5"
    return [
        shlex.join(["precision-probe", "audit", model, "STRUCTURES", *options, "-o", file]),
        shlex.join(["precision-probe", "report", file, "-o", "report.html"]),
    ]


def _option(key: str, value: object) -> list[str]:
    """An option, if the trace has its value; of a device its kind, without the name of its hardware."""
    return [f"--{key}", value.split()[0]] if isinstance(value, str) and value else []
