"""Settings of the site: `make docs` builds it into build/docs."""

import os
import re
import sys
import tomllib
import typing
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils.nodes import SkipNode

# Examples of several devices run on a CPU that JAX divides.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# Shapes in signatures are shown as they are written, instead of as classes.
typing.GENERATING_DOCUMENTATION = "jaxtyping"  # pyright: ignore[reportAttributeAccessIssue]

_ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(_ROOT))
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]

project = "bn_jax"
author = "the authors of bn_jax"
project_copyright = author
release = re.search(
    r'__version__ = "(.*)"', (_ROOT / "bn_jax/__init__.py").read_text()
)[1]

exclude_patterns = ["**.ipynb_checkpoints"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
default_role = "code"
highlight_language = "text"
nitpicky = True
# Objects of other projects: the site is built without the network.
nitpick_ignore_regex = [
    # Docstrings name exceptions without their modules.
    (r"py:exc", r"\w+Error"),
    *(
        (r"py:.*", rf"(.*\.)?{name}")
        for name in (
            r"(jax|flax|jaxtyping|numpy|optax|nnx|nn|collections|typing)\..*",
            r"(Array|Bool|Float|Inexact|PyTree|Any|Sequence|Mapping|Callable|Iterable)",
            r"(Initializer|Dtype|PromoteDtypeFn|Module|LinenModule|ConfigDict|Rngs)",
            r"(Path|State|ndarray)",
        )
    ),
]

myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "both"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 72
viewcode_line_numbers = True

html_math_renderer = "mathml"
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"bn_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False


# The unions that Flax's names for types stand for, and what it adds to every module.
_READABLE = (
    (r", parent: .*?, name: str \| None = None", ""),
    (r"~[\w.]+\.(\w+)", r"\1"),
    (r"str \| type\[Any\] \| dtype \| SupportsDType \| Any( \| None)?", r"Dtype\1"),
    (r"Initializer \| Callable\[\[\.\.\.\], Any\]", "Initializer"),
    (r"<class 'jax\.numpy\.(\w+)'>", r"jnp.\1"),
    (r"<function (\w+)>", r"\1"),
)


def _shorten_types(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: Any, returns: Any
) -> tuple[Any, Any]:
    for pattern, replacement in _READABLE if signature else ():
        signature = re.sub(pattern, replacement, signature)
    return signature, returns


def _separate_plurals(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    # A plural such as `Param`s needs a mark between the code and the letter.
    lines[:] = [re.sub(r"(`[^` ]+`)s\b", r"\1\\ s", line) for line in lines]


def _inline_math(translator: Any, node: Any) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise SkipNode


def _math_block(translator: Any, node: Any) -> None:
    mathml = latex2mathml.converter.convert(node.astext(), display="block")
    translator.body.append(f'<div class="math">{mathml}</div>')
    raise SkipNode


def setup(app: Any) -> None:
    """Registers what Sphinx calls while it builds.

    Args:
        app: Sphinx.
    """
    app.connect("autodoc-process-signature", _shorten_types)
    app.connect("autodoc-process-docstring", _separate_plurals)
    # MathML needs no script from another server, unlike Sphinx's default.
    app.add_html_math_renderer("mathml", (_inline_math, None), (_math_block, None))
