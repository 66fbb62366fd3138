"""Policies and structures of any content are read, or refused by an ``InputError`` in a paragraph: nothing else."""

import json
import signal
import string
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precision_probe.exceptions import InputError
from precision_probe.labels import LabelKeys
from precision_probe.models.graphs import build_graph
from precision_probe.models.memory import check_memory
from precision_probe.policy import Policy, Rule
from precision_probe.structures import read_structures

N_SAMPLE, N = 60, 5000
SIZES = [pytest.param(N_SAMPLE, id="sample"), pytest.param(N, id="all", marks=pytest.mark.slow)]
LONGEST_MESSAGE, PATIENCE = 1000, 20  # characters, and seconds for one input

NUMBERS = st.one_of(st.floats(), st.integers(), st.floats(-10, 10), st.sampled_from(["", "abc", "1e400", "--1", "T"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)
SUFFIXES = (".xyz", ".extxyz", ".cif", ".json", ".traj", ".vasp", ".pdb", ".data", ".gen", "")
POLICY = json.loads(
    Policy(
        (Rule("interactions.*", "float16"), Rule("products.0", "bfloat16")),
        {"forces": 1e-3},
        {"n": [1, 2.5, None]},
        {"class": "MACE", "sha256": "ab"},
    ).to_json()
)


class HangError(BaseException):
    """Not an ``Exception``, of which many readers catch any."""


def fuzzed(strategy, n):
    """Run with so many inputs, the same each time."""
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    checked = settings(
        max_examples=n, deadline=None, derandomize=n == N_SAMPLE, database=None, suppress_health_check=quiet
    )
    return lambda function: checked(given(strategy)(function))()


def read_or_refused(read, *arguments):
    """What comes of it, ``None`` where it is refused as it should be, in time."""

    def hang(*_):
        raise HangError(f"it took more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(*arguments)
    except InputError as error:
        message = str(error)
        assert 10 < len(message) < LONGEST_MESSAGE, message
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


# policies


@pytest.mark.parametrize("n", SIZES)
def test_policies_of_any_bytes(tmp_path, n):
    path = tmp_path / "policy.json"

    @fuzzed(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")), n)
    def check(content):
        path.write_bytes(content)
        assert read_or_refused(Policy.load, path) is None


@pytest.mark.parametrize("n", SIZES)
def test_policies_of_any_json(n):
    @fuzzed(JSON, n)
    def check(content):
        assert read_or_refused(Policy.from_json, json.dumps(content)) is None


@st.composite
def edited_policies(draw):
    """A policy with one part of it, however deep, replaced, taken out or doubled."""
    content = json.loads(json.dumps(POLICY))
    place = content
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        edit = draw(st.sampled_from(["replace", "delete", "add"]))
        if edit == "delete":
            del place[key]
        elif edit == "replace" or isinstance(place, list):
            place[key] = draw(JSON | st.sampled_from(["float32", "tf32", "m10", "*", "!x", "[", 1e999, -1]))
        else:
            place[draw(st.text(max_size=10))] = draw(JSON)
        return content


@pytest.mark.parametrize("n", SIZES)
def test_policies_with_one_thing_wrong(n):
    @fuzzed(edited_policies(), n)
    def check(content):
        policy = read_or_refused(Policy.from_json, json.dumps(content))
        if policy is not None:
            assert [rule.blocks for rule in policy.rules] == [rule["blocks"] for rule in content["rules"]]
            again = read_or_refused(policy.to_json)  # a NaN among its evidence cannot be written
            assert again is None or Policy.from_json(again) == policy
            policy.assignments(["interactions.0", "products.0.linear", ""])


# structures


@pytest.mark.parametrize("n", SIZES)
def test_structures_of_any_bytes(tmp_path, n):
    @fuzzed(st.tuples(st.sampled_from(SUFFIXES), st.binary(max_size=200) | st.text(max_size=200).map(_encoded)), n)
    def check(case):
        suffix, content = case
        path = tmp_path / f"structures{suffix}"
        path.write_bytes(content)
        found = read_or_refused(read_structures, path)
        assert found is None or all(len(atoms) for atoms in found)


def _encoded(text):
    return text.encode(errors="surrogatepass")


@st.composite
def extended_xyz(draw):
    """A file of one to three structures in extended XYZ, most of it in order, and some of it not."""
    frames = []
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(0, 4))
        info = {
            "Lattice": " ".join(map(str, draw(st.lists(NUMBERS, min_size=8, max_size=10)))),
            "pbc": draw(st.sampled_from(["T T T", "F F F", "T F T", "1 1", "x"])),
            "REF_energy": draw(NUMBERS),
            "stress": " ".join(map(str, draw(st.lists(NUMBERS, min_size=5, max_size=9)))),
            "charge": draw(NUMBERS),
            draw(st.text(string.ascii_letters + "_:é", min_size=1, max_size=8)): draw(st.text(max_size=8)),
        }
        kept = draw(st.sets(st.sampled_from(sorted(info))))
        comment = " ".join(f'{key}="{info[key]}"' for key in sorted(kept))
        columns = draw(
            st.sampled_from(["species:S:1:pos:R:3", "species:S:1:pos:R:3:REF_forces:R:3", "pos:R:3", "x:Q:1"])
        )
        lines = [
            " ".join(
                [
                    draw(st.sampled_from(["H", "C", "O", "O", "H", "Xx", "Si", "7", ""])),
                    *(str(draw(NUMBERS)) for _ in range(draw(st.sampled_from([3, 3, 3, 6, 2])))),
                ]
            )
            for _ in range(n)
        ]
        count = draw(st.sampled_from([n, n, n, n, n + 1, -1, 10**12]))
        frames.append("\n".join([str(count), f"Properties={columns} {comment}".replace("\n", " "), *lines]))
    return "\n".join(frames) + draw(st.sampled_from(["\n", "", "\n\n\n"]))


@pytest.mark.parametrize("n", SIZES)
def test_structures_of_extended_xyz(tmp_path, model, n):
    path = tmp_path / "structures.xyz"
    keys = LabelKeys(energy="REF_energy")

    def read():
        for atoms in read_structures(path):
            graph = build_graph(atoms, model)
            check_memory([graph], model, graph.data["positions"].device)
        return read_structures(path, keys=keys)

    @fuzzed(extended_xyz(), n)
    def check(content):
        path.write_text(content, encoding="utf-8", errors="surrogatepass")
        read_or_refused(read)
