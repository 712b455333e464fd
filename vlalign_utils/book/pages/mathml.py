"""Formulas as MathML, written at build time: no script, no web font, no request, read by screen readers.

docutils brings the LaTeX-to-MathML converter. It knows a subset of LaTeX; what it does not know is a
build warning, and warnings are errors, so a formula is either right or the build stops.
"""

from html import escape

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def to_mathml(latex: str, block: bool) -> str:
    """Return the `<math>` element of a LaTeX formula; raises MathError for unknown commands."""
    if block and r"\\" in latex and r"\begin{" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    return tex2mathml(latex, as_block=block)


def _convert(node: nodes.math | nodes.math_block, block: bool) -> str:
    latex = node.astext()
    try:
        return to_mathml(latex, block)
    except MathError as error:
        logger.warning("formula %r cannot be shown as MathML: %s", latex, error, location=node)
        return f"<code>{escape(latex)}</code>"


def _visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{_convert(node, block=False)}</span>')
    raise nodes.SkipNode


def _visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math", tabindex="0"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(_convert(node, block=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the renderer; `_config.yml` chooses it with `html_math_renderer: mathml`."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
