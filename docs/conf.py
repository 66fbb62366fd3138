"""How Sphinx makes the site: ``sphinx-build -W --keep-going -n -c docs . build/site``.

The source folder is the repository, so that pages link to one another as they do on GitHub: a link from a page to a
benchmark's results or to a script is the same in both. Examples are run while the site is built, once.
"""

import re
import warnings

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator
from sphinx_gallery.sorting import ExplicitOrder

import precision_probe

project = "precision_probe"
version = release = precision_probe.__version__
copyright = "the authors of precision_probe"  # noqa: A001  Sphinx's name for it
html_title = f"precision_probe {version}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/results/*.md",
    "docs/**.md",
    "docs/gallery/*.rst",
]
exclude_patterns = ["benchmarks/results/bench_policy_drift.md"]  # a table that docs/policies.md has
templates_path = ["_templates"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "index.html"}  # where the site is opened, which leads to the root document
html_copy_source = False
html_show_sphinx = False
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
copybutton_prompt_text = "$ "

# Markdown as GitHub reads it
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

# The reference. Functions, methods and modules of ours must be found; what is not ours would need a network.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = napoleon_use_rtype = False
nitpick_ignore_regex = [
    (r"py:.*", r"(?!precision_probe\b).*"),
    (r"py:class", r"precision_probe\.[a-z].*"),  # types in signatures, which are not all for use
]

# The examples, in the order of the gallery
EXAMPLES = ("quickstart", "figures", "your_model", "in_situ", "offline", "policy", "cluster")
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "docs/gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": rf"^(?!({'|'.join(EXAMPLES)})\.py$)",  # what needs arguments, hours or a GPU is no page
    "within_subsection_order": ExplicitOrder([*(f"{name}.py" for name in EXAMPLES), "*"]),
    "download_all_examples": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "ignore_repr_types": "matplotlib",
    "abort_on_example_error": True,
    "doc_module": ("precision_probe",),
}
warnings.filterwarnings("ignore")  # of libraries that examples import, which name paths of this machine

html_math_renderer = "mathml"


def inline_math(writer: HTML5Translator, node: nodes.math) -> None:
    """Write a formula as MathML, which browsers draw by themselves."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def math_block(writer: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula that stands by itself."""
    writer.body.append(writer.starttag(node, "div", CLASS="math") + tex2mathml(node.astext(), as_block=True) + "</div>")
    raise nodes.SkipNode


def with_gallery(app: Sphinx, name: str, source: list[str]) -> None:
    """Let links to examples lead to their pages."""
    source[0] = re.sub(rf"\((\.\./)*examples/({'|'.join(EXAMPLES)})\.py\)", r"(/docs/gallery/\2.rst)", source[0])
    source[0] = re.sub(r"\((\.\./)*examples/README\.md\)", "(/docs/gallery/index.rst)", source[0])


def with_bars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Let bars in docstrings be those of a magnitude, and not around the name of a substitution."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[number] = re.sub(r"(``.*?``)|\|", lambda found: found[1] or r"\|", line)


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.add_html_math_renderer("mathml", (inline_math, None), (math_block, None))
    app.connect("source-read", with_gallery)
    app.connect("autodoc-process-docstring", with_bars)
