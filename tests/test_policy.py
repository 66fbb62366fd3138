"""policy.py: what rules mean, and the file that they are kept in."""

import contextlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_probe.exceptions import InputError
from precision_probe.globs import matches
from precision_probe.policy import SUMMED, Policy, Rule
from precision_probe.precisions import PRECISIONS

NAMES = st.lists(st.sampled_from(["interactions", "products", "readouts", "0", "1", "linear"]), min_size=1, max_size=4)
GLOBS = st.lists(st.sampled_from(["*", "inter*", "products", "readouts", "[01]", "0", "?", "linear"]), min_size=1)
NOT_TF32 = st.sampled_from([name for name in PRECISIONS if name != "tf32"])
RULES = st.lists(st.builds(Rule, GLOBS.map(".".join), NOT_TF32), max_size=6).map(tuple)
TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
POLICIES = st.builds(
    Policy,
    RULES,
    st.dictionaries(TEXT, POSITIVE, max_size=3),
    st.dictionaries(TEXT, JSON, max_size=3),
    st.dictionaries(TEXT, JSON, max_size=3),
)
GOOD = {"schema_version": 1, "rules": [{"blocks": "interactions.*", "compute": "float16", "accumulate": "float32"}]}


@pytest.fixture
def policy():
    return Policy(
        (Rule("interactions.0.linear_up", "single"), Rule("interactions.*", "fp16")),
        tolerance={"forces": 1e-3},
        evidence={"forces": {"max": 3.5e-4}, "structures": ["a", "b"]},
        model={"class": "MACE", "sha256": "0" * 64},
    )


# rules


@pytest.mark.parametrize(("alias", "name"), [("half", "float16"), ("bf16", "bfloat16"), ("TF32", "tf32")])
def test_precisions_have_the_names_they_have_everywhere(alias, name):
    rule = Rule("*", alias)
    assert (rule.compute, rule.precision) == (name, PRECISIONS[name])
    assert rule == Rule("*", name)


def test_only_float64_accumulates_in_float64():
    accumulated_in = {name: Rule("*", name).accumulate for name in PRECISIONS}
    assert accumulated_in == dict.fromkeys(PRECISIONS, "float32") | {"float64": "float64"}


@pytest.mark.parametrize("name", ["e5m10", "m7", "e8m7sr", 16, None])
def test_precisions_without_hardware_are_refused(name):
    with pytest.raises(InputError, match=r"precisions that hardware has, float64, .*got"):
        Rule("*", name)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match=r"Unknown precision 'flaot16'.*Did you mean 'float16'"):
        Rule("*", "flaot16")


@pytest.mark.parametrize("glob", ["", "  ", "!readouts.*", None, 3])
def test_a_rule_without_a_glob_is_refused(glob):
    with pytest.raises(InputError, match=r"a glob over their names, such as 'interactions\.\*'; got"):
        Rule(glob, "float32")


@given(name=NAMES.map(".".join), glob=GLOBS.map(".".join))
def test_a_rule_matches_as_globs_of_blocks_do_everywhere(name, glob):
    assert Rule(glob, "float32").matches(name) == matches(name, glob)


# policies


def by_definition(rules, name):
    """What a module computes in, word for word as the documentation has it."""
    if name == "":
        return "float64"
    first = next((rule.compute for rule in rules if rule.matches(name)), None)
    return first or by_definition(rules, name.rpartition(".")[0])


@given(rules=RULES, name=NAMES.map(".".join))
@settings(max_examples=300)
def test_the_first_rule_decides_else_the_module_around(rules, name):
    assert Policy(rules).precision_of(name).name == by_definition(rules, name)


@given(rules=RULES, name=NAMES.map(".".join), compute=NOT_TF32)
def test_a_rule_before_all_others_wins_and_one_after_them_only_fills_gaps(rules, name, compute):
    rule = Rule(name, compute)
    assert Policy((rule, *rules)).precision_of(name).name == compute
    others = [other.compute for other in rules if other.matches(name)]
    assert Policy((*rules, rule)).precision_of(name).name == (others[0] if others else compute)


@given(policy=POLICIES)
def test_the_model_itself_and_what_is_summed_stay_in_float64(policy):
    for name in ("", *SUMMED):
        assert policy.precision_of(name) is PRECISIONS["float64"]
    assert Policy((Rule("*", "float16"), Rule("scale_shift", "float16"))).precision_of("scale_shift").name == "float64"


def test_an_empty_policy_is_float64_and_a_uniform_one_reaches_everything():
    names = ["node_embedding", "interactions.0", "interactions.1.linear_up", "readouts.0"]
    assert Policy(()).assignments(names) == dict.fromkeys(names, PRECISIONS["float64"])
    assert Policy.uniform("half").assignments(names) == dict.fromkeys(names, PRECISIONS["float16"])


def test_precisions_are_named_once_in_order():
    policy = Policy((Rule("a", "half"), Rule("b", "float64"), Rule("c", "half")))
    assert [precision.name for precision in policy.precisions] == ["float16", "float64"]


def test_float32_and_tf32_in_one_policy_are_refused():
    with pytest.raises(InputError, match=r"float32 and tf32.*Choose one"):
        Policy((Rule("interactions.*", "tf32"), Rule("readouts.*", "float32")))


@given(rules=RULES)
def test_matrix_products_are_exact_without_tf32(rules):
    assert Policy(rules).matmul_mode == "ieee"


@pytest.mark.parametrize("before", [(), ("float16",), ("float64", "bfloat16")])
@pytest.mark.parametrize("after", [(), ("float16",)])
def test_one_rule_in_tf32_sets_the_mode_of_all_matrix_products(before, after):
    rules = tuple(Rule(f"interactions.{n}", name) for n, name in enumerate((*before, "tf32", *after)))
    assert Policy(rules).matmul_mode == "tf32"
    assert {precision.matmul_mode for precision in Policy(rules).precisions} <= {"ieee", "tf32"}


# the model that runs it


def test_models_and_calculators_are_those_of_the_module_that_makes_them(monkeypatch, policy):
    """Which is found by name; here its functions say what they were given."""
    from precision_probe.fast import drivers
    from precision_probe.variants import mixed

    monkeypatch.setattr(mixed, "apply", lambda *args, **options: ("apply", *args, options))
    for name in ("calculator", "torch_sim_model"):
        monkeypatch.setattr(drivers, name, lambda *args, _name=name, **options: (_name, *args, options))
    wide, narrow = ({"interface": name} for name in ("float64", "float32"))
    assert policy.apply("demo") == ("apply", policy, "demo", None, wide)
    assert policy.apply("demo", "cuda:1", **narrow) == ("apply", policy, "demo", "cuda:1", narrow)
    assert policy.calculator("demo") == ("calculator", policy, "demo", "cpu", {"run": None, **wide})
    found = policy.calculator("demo", "cuda", run="eager", head="a", **narrow)
    assert found == ("calculator", policy, "demo", "cuda", {"run": "eager", "head": "a", **narrow})
    found = policy.torch_sim_model("demo", "cuda", compute_stress=True)
    assert found == ("torch_sim_model", policy, "demo", "cuda", {"compute_stress": True})


# the file


@given(policy=POLICIES)
@settings(deadline=None)
def test_json_gives_the_same_policy_back(policy):
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert again.to_json() == policy.to_json()


def test_the_file_is_small_and_says_what_is_accumulated(policy, tmp_path):
    path = policy.save(tmp_path / "policy.json")
    assert Policy.load(path) == policy
    assert list(tmp_path.iterdir()) == [path]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == ["schema_version", "rules", "tolerance", "evidence", "model"]
    assert content["rules"][1] == {"blocks": "interactions.*", "compute": "float16", "accumulate": "float32"}


def test_a_file_needs_no_more_than_rules():
    assert Policy.from_json(json.dumps(GOOD)) == Policy((Rule("interactions.*", "float16"),))
    short = GOOD | {"rules": [{"blocks": "interactions.*", "compute": "half"}]}
    assert Policy.from_json(json.dumps(short)) == Policy.from_json(json.dumps(GOOD))


def test_a_file_that_is_there_is_kept_unless_asked(policy, tmp_path):
    path = policy.save(tmp_path / "policy.json")
    other = Policy.uniform("float32")
    with pytest.raises(InputError, match="exists"):
        other.save(path)
    assert Policy.load(path) == policy
    other.save(path, force=True)
    assert Policy.load(path) == other


@pytest.mark.parametrize("evidence", [{"error": float("nan")}, {"error": float("inf")}, {"error": {1, 2}}])
def test_what_is_no_json_is_refused_and_the_good_file_stays(policy, tmp_path, evidence):
    path = policy.save(tmp_path / "policy.json")
    with pytest.raises(InputError, match=r"cannot be written as JSON .*finite numbers"):
        Policy((), evidence=evidence).save(path, force=True)
    assert Policy.load(path) == policy
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused(policy, tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        policy.save(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        policy.save(tmp_path / "absent" / "policy.json")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent.json cannot be read \(No such file"):
        Policy.load(tmp_path / "absent.json")
    with pytest.raises(InputError, match="cannot be read"):
        Policy.load(tmp_path)
    path = tmp_path / "trace.h5"
    path.write_bytes(b"\x89HDF\r\n\xff")
    with pytest.raises(InputError, match=r"cannot be read \(it is not text\)"):
        Policy.load(path)


def with_rule(**entry):
    return GOOD | {"rules": [GOOD["rules"][0], entry]}


BAD = [
    ("{", "is not JSON"),
    ("[" * 10**5, "is not JSON"),
    ([], r"is a JSON object with the keys schema_version, rules; got \[\]"),
    ({"rules": []}, "lacks 'schema_version'"),
    ({"schema_version": 1}, "lacks 'rules'"),
    (GOOD | {"schema_version": 2}, "has schema version 2; .*reads version 1"),
    (GOOD | {"schema_version": "1"}, "has schema version '1'"),
    (GOOD | {"tolerence": {}}, "unknown key 'tolerence'.*Did you mean 'tolerance'"),
    (GOOD | {"rules": {}}, "its rules are a list"),
    (GOOD | {"evidence": []}, "its evidence is a dictionary"),
    (GOOD | {"tolerance": {"forces": "small"}}, "the tolerance of 'forces' is a number above zero.*got 'small'"),
    (GOOD | {"tolerance": {"forces": True}}, "got True"),
    (GOOD | {"tolerance": {"forces": 0}}, "got 0"),
    ('{"schema_version": 1, "rules": [], "tolerance": {"forces": NaN}}', "got nan"),
    (GOOD | {"rules": ["*"]}, r"rule 0 is a JSON object with the keys blocks, compute; got '\*'"),
    (with_rule(blocks="*"), "rule 1 lacks 'compute'"),
    (with_rule(blocks="*", compute="half", acumulate="float32"), "rule 1 has an unknown key .*'accumulate'"),
    (with_rule(blocks="*", compute="half", accumulate="float16"), "rule 1 accumulates in 'float16'.*in float32"),
    (with_rule(blocks="*", compute="quad"), "Unknown precision 'quad'"),
    (with_rule(blocks="*", compute=["half"]), "precisions that hardware has"),
    (with_rule(blocks="", compute="half"), "a glob over their names"),
    (GOOD | {"rules": [{"blocks": "a", "compute": name} for name in ("tf32", "float32")]}, "float32 and tf32"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_what_is_no_policy_is_refused(tmp_path, content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(InputError, match=rf"(?s)^The policy.*{message}"):
        Policy.from_json(text)
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"(?s)^The policy .*bad\.json.*{message}"):
        Policy.load(path)


@given(content=JSON)
def test_any_json_is_a_policy_or_refused(content):
    with contextlib.suppress(InputError):
        assert isinstance(Policy.from_json(json.dumps(content)), Policy)


def test_policies_need_neither_torch_nor_mace():
    code = "import sys; import precision_probe.policy; assert not {'torch', 'mace'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
