"""Reads traces whose names come line by line, and says of each how that went: run by itself, so that it may crash.

The first is the one that was not damaged. All that can be computed of a trace is compared with what was computed of it,
and a page is made.
"""

import hashlib
import json
import resource
import sys
import warnings

import numpy as np

import precision_probe as pp
from precision_probe.analysis.views import view, views
from precision_probe.report.page import render

MEMORY = 4 * 2**30


def content(path):
    """Every array of a trace, and all that is computed of it, in short."""
    with pp.open_trace(path) as trace:
        found = {}
        for node in trace.tree.subtree:
            for name, variable in node.to_dataset(inherit=False).variables.items():
                values = np.asarray(variable.values)
                data = values.astype(str) if values.dtype.kind in "OUST" else values
                said = f"{variable.dims} {values.shape} {data.dtype.kind}".encode()
                found[f"{node.path}/{name}"] = hashlib.sha256(said + data.tobytes()).hexdigest()
        for by in (None, "irrep", "element"):
            found[f"errors by {by}"] = rows(pp.errors(trace, by=by))
        found["summary"] = rows(pp.summary(trace))
        for name in views(trace):
            found[f"view {name}"] = rows(view(trace, name).frame)
        found["compared"] = rows(pp.compare_traces(trace, trace))
    return found


def page(path):
    """The page of a trace."""
    with pp.open_trace(path) as trace:
        return render(trace)


def rows(table):
    """A table in whatever order its rows and columns are: that of the variables in the file."""
    return sorted(table[sorted(table.columns, key=str)].to_csv(index=False).splitlines())


def outcome(path, expected):
    """What came of reading a damaged trace."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:  # by itself: what else is computed may have refused the trace before
            assert page(path).endswith("</html>")
        except pp.InputError:
            pass
        except Exception as error:
            return "no page", f"{type(error).__name__}: {error}"
        try:
            found = content(path)
        except pp.InputError as error:
            return "refused", str(error)
        except Exception as error:
            return "raw exception", f"{type(error).__name__}: {error}"
    if found == expected:
        return "identical", ""
    differing = sorted({key for key in (*found, *expected) if found.get(key) != expected.get(key)})
    is_noticed = any("was changed since it was finished" in str(each.message) for each in said)
    return ("noticed" if is_noticed else "silently different"), ", ".join(differing)[:300]


def main():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    expected = content(sys.stdin.readline().strip())
    print(json.dumps(["ready", ""]), flush=True)
    for line in sys.stdin:
        print(json.dumps(outcome(line.strip(), expected)), flush=True)


main()
