"""globs.py against fnmatch, applied part by part."""

import subprocess
import sys
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_probe.globs import matches

NAMES = st.lists(st.sampled_from(["interactions", "products", "readouts", "0", "1", "linear"]), min_size=1, max_size=4)
GLOBS = st.lists(st.sampled_from(["*", "inter*", "products", "readouts", "[01]", "0", "?", "linear"]), min_size=1)


@given(name=NAMES, glob=GLOBS)
def test_a_star_stays_between_two_dots(name, glob):
    expected = len(name) == len(glob) and all(fnmatchcase(*parts) for parts in zip(name, glob, strict=True))
    assert matches(".".join(name), ".".join(glob)) == expected


@pytest.mark.parametrize(
    ("name", "glob", "expected"),
    [
        ("interactions.0", "interactions.*", True),
        ("interactions.0.linear", "interactions.*", False),
        ("interactions.0.linear", "interactions.*.*", True),
        ("interactions.0", "*", False),
        ("interactions.10", "interactions.?", False),
        ("interactions.1", "interactions.[01]", True),
        ("interactions.2", "interactions.[!01]", True),
        ("Interactions.0", "interactions.0", False),
        ("", "", True),
        ("", "*", True),
        ("readouts.0", "", False),
    ],
)
def test_names_and_globs(name, glob, expected):
    assert matches(name, glob) is expected


@given(name=NAMES.map(".".join))
def test_a_name_is_a_glob_that_matches_itself(name):
    assert matches(name, name)


def test_globs_need_no_torch():
    code = "import sys; import precision_probe.globs; assert not {'torch', 'mace'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
