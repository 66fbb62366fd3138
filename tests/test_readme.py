"""The code and the commands in README.md and docs/ work as they are printed."""

import contextlib
import json
import re
import shlex
from importlib import resources
from types import SimpleNamespace

import pytest
import torch
import typer
from runs import ROOT

from precision_probe.analysis.whole_model import main_causes
from precision_probe.cli.main import app
from precision_probe.diagnostics.contributions import contributions
from precision_probe.diagnostics.reference import Reference
from precision_probe.diagnostics.suite import evenly_spread
from precision_probe.models.dtypes import default_dtype
from precision_probe.precisions import parse_precisions
from precision_probe.structures import read_structures
from precision_probe.variants.variant import Variant

PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.is_file()]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
SHELLS = ("console", "bash", "sh", "shell")

pages = pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])


def blocks(text, *languages):
    """Each fenced block in one of the languages, with the number of its first line."""
    for block in FENCE.finditer(text):
        if block["language"] in languages:
            lines = [line.removeprefix(block["indent"]) for line in block["code"].splitlines()]
            yield text.count("\n", 0, block.start()) + 2, "\n".join(lines) + "\n"


def commands(text):
    """The arguments of each precision-probe command in the shell blocks."""
    for _, code in blocks(text, *SHELLS):
        lines = code.replace("\\\n", " ").splitlines()
        prompts = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in prompts or lines:
            for words in split_commands(line):
                if words[:1] == ["precision-probe"]:
                    yield words[1:]
                elif words[1:3] == ["-m", "precision_probe"]:
                    yield words[3:]


def split_commands(line):
    """The words of each command in a line, without redirections, comments and settings of variables before it."""
    split = [[]]
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    redirected = False
    for word in words:
        if set(word) <= set("|&;"):
            split.append([])
        elif set(word) <= set("<>"):
            redirected = True
        elif redirected:
            redirected = False
        elif split[-1] or not re.fullmatch(r"\w+=.*", word):
            split[-1].append(word)
    return split


def parse(arguments):
    """Parse a command without running it; raise where the command line would refuse it."""
    group = typer.main.get_command(app)
    if not arguments or arguments[0].startswith("-"):
        verb, command = "precision-probe", group
    else:
        verb, *arguments = arguments
        if verb not in group.commands:
            raise ValueError(f"No such verb: {verb}")
        command = group.commands[verb]
    with contextlib.suppress(typer.Exit):  # --help
        command.make_context(verb, list(arguments))


@pages
def test_python_runs(page, tmp_path, monkeypatch):
    """In order, each page in a folder of its own; what ASE's calculators do to torch's default dtype is undone."""
    monkeypatch.chdir(tmp_path)
    scripts = list(blocks(page.read_text(encoding="utf-8"), "python"))
    if not scripts:
        pytest.skip("no Python on this page")
    namespace = {"__name__": "__main__"}
    with default_dtype(torch.get_default_dtype()):
        for line, code in scripts:
            exec(compile("\n" * (line - 1) + code, page, "exec"), namespace)


@pages
def test_commands_exist(page):
    printed = list(commands(page.read_text(encoding="utf-8")))
    if not printed:
        pytest.skip("no command on this page")
    for arguments in printed:
        parse(arguments)


# What finds and judges them

PAGE = """
Text with `precision-probe nothing`.

```python
x = 1
```

1. A list:

   ```console
   $ pip install precision-probe
   $ CUDA_VISIBLE_DEVICES=0 precision-probe audit my.model "a b.xyz@0:16" \\
       -p float32,bf16 --blocks 'products.*' > log.txt  # a comment
   The model as a whole: error against float64
   $ precision-probe errors out.h5 --format csv | head && python -m precision_probe --help
   ```

```bash
pytest -q
precision-probe inspect
```

```text
precision-probe nothing
```
"""


def test_blocks_and_commands_are_found():
    assert list(blocks(PAGE, "python")) == [(5, "x = 1\n")]
    assert list(commands(PAGE)) == [
        ["audit", "my.model", "a b.xyz@0:16", "-p", "float32,bf16", "--blocks", "products.*"],
        ["errors", "out.h5", "--format", "csv"],
        ["--help"],
        ["inspect"],
    ]
    for arguments in commands(PAGE):
        parse(arguments)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("guess out.h5", "No such verb"),
        ("audit --nope", "No such option"),
        ("--nope", "No such option"),
        ("inspect a b c", "unexpected extra argument"),
        ("errors", "Missing"),
        ("errors out.h5 --format xml", "xml"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(command, message):
    with pytest.raises(Exception, match=message):
        parse(command.split())


# Figures


STEPS = {
    "SiC": ("bench_fast-cuda", "bench_fast-sic-cuda"),
    "water, small model": ("bench_fast-trained-cuda",),
    "water, larger model": ("bench_fast-larger-192-cuda", "bench_fast-larger-cuda"),
}


def steps_of_the_committed_results():
    """Time of a step (ms), relative force error, total energy error (meV/atom), by system, number of atoms and way."""
    found = {}
    for system, name in ((system, name) for system, names in STEPS.items() for name in names):
        text = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text("utf-8")
        for case in text.split("\n## ")[1:]:
            for row in re.findall(r"^\| (.*) \|$", case, re.MULTILINE):
                cells = row.split(" | ")
                if len(cells) == 9 and re.match(r"[\d.]+ \[", cells[1]):
                    key = system, case.partition(" ")[0], cells[0]
                    found[key] = float(cells[1].split()[0]), *map(float, cells[-2:])
    return found


def test_the_table_at_the_top_is_that_of_the_committed_results():
    measured = steps_of_the_committed_results()
    rows = re.findall(r"^\| (.*), ([\d,]+) atoms \| (.*) \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 6
    for system, n_atoms, row in rows:
        usual, usual_errors, ours, our_errors = row.split(" | ")
        casts = [
            each
            for (*of, way), each in measured.items()
            if of == [system, n_atoms] and way.startswith("MACECalculator, float32")
        ]
        expected = min(casts), measured[system, n_atoms, "interactions, products, readouts in float32, graph"]
        for (step, *errors), shown, shown_errors in zip(
            expected, (usual, ours), (usual_errors, our_errors), strict=True
        ):
            assert float(shown.strip("* ms")) == pytest.approx(step, rel=0.02)
            assert [float(each) for each in shown_errors.removesuffix(" meV/atom").split(", ")] == pytest.approx(
                errors, rel=0.02
            )


@pytest.mark.parametrize(("page", "question", "n_rows"), [("README.md", "fast", 6), ("docs/policies.md", None, 21)])
def test_policies_are_those_of_the_committed_results(page, question, n_rows):
    """Rows: a question (where the page has several), the rules, five numbers; the results are named before a table."""
    n_compared, results = 0, {}
    for line in (ROOT / page).read_text("utf-8").splitlines():
        if name := re.search(r"bench_recommend-[-a-z0-9]+(?=\.md)", line):
            path = ROOT / "benchmarks" / "results" / f"{name[0]}.json"
            results = json.loads(path.read_text("utf-8"))["questions"]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        asked = question or cells[0]
        if len(cells) < 6 or asked not in results or not re.match(r"[\d.]+$", cells[-5]):
            continue
        rules = cells[-6].replace("\\", "")
        candidates = results[asked]["candidates"]
        cast = re.search(r"model\.to\(\w+\)", rules)
        (row,) = [
            row
            for row in candidates
            if (row["candidate"] == cast[0] if cast else row["rules"] == rules.removesuffix(" (chosen)"))
        ]
        assert rules.endswith("(chosen)") == (question is None and row["candidate"] == results[asked]["chosen"])
        time, *others = (float(cell.partition(" (")[0]) for cell in cells[-5:])
        assert time == pytest.approx(1e3 * row["seconds"], abs=0.0501)
        if interval := re.search(r"\(([\d.]+)–([\d.]+)\)", cells[-4]):
            ends = (row["vs_float32_low"], row["vs_float32_high"])
            assert tuple(map(float, interval.groups())) == pytest.approx(ends, abs=0.00501)
        assert others == [
            pytest.approx(row["vs_float32"], abs=0.00501),
            pytest.approx(row["memory_vs_float32"], abs=0.00501),
            pytest.approx(row["forces_rel_l2"], rel=0.05),
            pytest.approx(1e3 * row["energy"], rel=0.05),
        ]
        n_compared += 1
    assert n_compared == n_rows


def test_errors_of_the_bundled_model_are_those_beside_it():
    with resources.as_file(resources.files("precision_probe") / "demo" / "validation.json") as path:
        about = json.loads(path.read_text("utf-8"))
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"trained on {about['train_structures']:,} GFN2-xTB structures" in text
    assert f"On {about['validation_structures']} validation structures its errors are" in text
    assert f"{about['forces_mae_meV_per_A']:.0f} meV/Å (force MAE)" in text
    assert f"{about['energy_mae_meV_per_atom']:.1f} meV/atom (energy MAE)" in text


def test_parts_that_make_the_errors_are_those_that_the_page_names():
    """The shares in the table of the demo, and the one in the text, by the measure that an audit takes."""
    structures = evenly_spread(read_structures("demo"), 3)
    reference = Reference("demo", structures, device="cpu")
    variants = [
        Variant(reference.model, each, reference.device) for each in parse_precisions("float32,bfloat16,float16")
    ]
    table = contributions(reference, variants)
    trace = SimpleNamespace(table=lambda name: SimpleNamespace(frame={"contributions": table}[name]))
    causes = main_causes(trace)
    text = (ROOT / "README.md").read_text("utf-8")
    for precision, row in causes.iterrows():
        (named,) = re.findall(rf"^ +{precision} .*?(\w+) +(\d+)% +(\w+) +(\d+)%$", text, re.MULTILINE)
        assert (named[0], named[2]) == (row["energy_part"], row["forces_part"])
        assert float(named[1]) == pytest.approx(100 * row["energy_share"], abs=1.5)
        assert float(named[3]) == pytest.approx(100 * row["forces_share"], abs=5)  # from machine to machine
    (radial,) = re.findall(r"in float32 `radial_embedding` makes (\d+) % more", text)
    float32 = table[table["precision"] == "float32"].set_index("part")
    assert float(radial) == pytest.approx(100 * float32.loc["radial_embedding", "forces_share"], abs=5)
