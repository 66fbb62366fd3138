"""One page of a trace: a file that opens in any browser from the disk, and asks the network for nothing.

Nothing here imports torch or mace.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from precision_probe.analysis.errors import GUIDE
from precision_probe.exceptions import InputError, printable
from precision_probe.files import check_writable, replacing
from precision_probe.policy import Policy
from precision_probe.progress import shown
from precision_probe.report.content import Figure, Section
from precision_probe.report.drawing.scales import CIVIDIS, OKABE_ITO, ink
from precision_probe.report.findings import Findings
from precision_probe.report.sections.causes import causes
from precision_probe.report.sections.comparison import comparison
from precision_probe.report.sections.cost import cost
from precision_probe.report.sections.growth import growth
from precision_probe.report.sections.network import blocks
from precision_probe.report.sections.provenance import provenance
from precision_probe.report.sections.structures import structures
from precision_probe.report.sections.verdict import verdict
from precision_probe.trace.trace import Trace
from precision_probe.version import __version__

__all__ = ["render", "write_report"]

# In the order in which they are read.
_SECTIONS: tuple[Callable[[Findings], Section | None], ...] = (
    verdict,
    comparison,
    growth,
    blocks,
    causes,
    structures,
    cost,
    provenance,
)


def write_report(
    trace: Trace,
    path: str | Path,
    *,
    tolerance: Mapping[str, float] | None = None,
    policy: Policy | None = None,
    other: Trace | None = None,
    file: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Write a page of a trace: the verdict, where the error grows, what explains it, and where it all comes from.

    Args:
        trace: As :func:`precision_probe.open_trace` or ``probe.trace()`` returns it.
        path: The HTML file; it appears when it is complete.
        tolerance: Largest errors allowed, by quantity, as ``parse_tolerances`` reads them: ``energy`` eV/atom,
            ``forces`` eV/Å, ``stress`` eV/Å³. Default: that of the policy, or a guide.
        policy: What is recommended for the model, to be shown beside the precisions as a whole.
        other: Another trace of the same structures, such as of another backend or version: what changed from the one
            to the other, beyond what rounding explains.
        file: The name of the trace's file, for the commands that make the page again.
        force: Replace a file that is there.
        progress: Say on stderr how far it is: a bar in a terminal, else lines.

    Raises:
        InputError: If the trace compares no precision, the other is not of the same structures, or the path cannot be
            written, or is there without ``force``.
    """
    path = check_writable(path, force=force)
    page = render(trace, tolerance=tolerance, policy=policy, other=other, file=file, progress=progress)
    with replacing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def render(
    trace: Trace,
    *,
    tolerance: Mapping[str, float] | None = None,
    policy: Policy | None = None,
    other: Trace | None = None,
    file: str | None = None,
    progress: bool = False,
) -> str:
    """The page as text; arguments and errors are those of :func:`write_report`."""
    if not trace.precisions:
        raise InputError("The trace has float64 alone, with which nothing is compared. Audit other precisions too.")
    own = tolerance or (policy.tolerance if policy is not None else None)
    findings = Findings(trace, own or GUIDE, is_guide=not own, policy=policy, other=other, file=file)
    made = [make(findings) for make in shown(_SECTIONS, "Writing the page", progress=progress)]
    sections = [section for section in made if section is not None]
    style, script = _asset("page.css") + _colours(), _asset("page.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["figure"] = lambda part: isinstance(part, Figure)
    return environment.from_string(_asset("page.html")).render(
        title=f"{printable(trace.attributes.get('model_name') or 'model')} in {', '.join(findings.precisions)}",
        sections=sections,
        precisions=findings.precisions,
        style=Markup(style),  # noqa: S704  (the package's own)
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=__version__,
        created=printable(trace.attributes.get("created", "")),
    )


def _asset(name: str) -> str:
    return resources.files("precision_probe.report").joinpath("assets", name).read_text(encoding="utf-8")


def _colours() -> str:
    """Classes of colours: shades of cells, and slots of series."""
    shades = [f".q{at}{{background:{colour};color:{ink(at)}}}" for at, colour in enumerate(CIVIDIS)]
    slots = [f".s{at}{{--c:{colour}}}" for at, colour in enumerate(OKABE_ITO)]
    return "\n".join([*shades, *slots, ""])


def _hash(text: str) -> str:
    """By which a Content-Security-Policy knows a script or a style, and admits no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
