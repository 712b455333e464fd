"""The book's Sphinx extension: formulas, text alternatives, composed chapters, and accessible markup."""

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from vlalign_utils.book.pages import alt_text, chapter, mathml
from vlalign_utils.pipeline import registry

MENDED = {
    'role="doc-biblioentry"': 'role="listitem"',  # docutils writes a role that ARIA 1.2 gave up
    ' aria-label="Toggle hidden content"': "",  # myst-nb hides "Show the code" from screen readers
}
# A link of the sidebar and the arrow that opens the list below it, which says nothing to screen readers.
SEARCH = "linkEl.innerHTML = title;"
# A parsed document runs and loads nothing.
INERT = 'linkEl.textContent = new DOMParser().parseFromString(title, "text/html").body.textContent;'
# Jupyter Book's own redirect has no language, no title and no link.
REDIRECT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<meta http-equiv="refresh" content="0; url={target}">
</head>
<body><main><h1>{title}</h1><p><a href="{target}">Open the book</a></p></main></body>
</html>
"""


def _compose_chapter(app: Sphinx, document: str, source: list[str]) -> None:
    if app.env.doc2path(document).endswith(".ipynb"):
        notebook = nbformat.reads(source[0], as_version=4)
        root = Path(app.srcdir)
        chapter.compose(notebook, document, registry.load(root), root)
        source[0] = nbformat.writes(notebook)


def _mend_markup(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    for wrong, right in MENDED.items():
        context["body"] = context.get("body", "").replace(wrong, right)


def _name_toggles(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Name the arrows of the sidebar, which the theme writes while it fills its template."""
    if "generate_toctree_html" in context:
        context["generate_toctree_html"] = partial(_with_names, context["generate_toctree_html"])


def _with_names(generate: Callable[..., Any], *given: Any, **named: Any) -> Any:
    found = generate(*given, **named)  # parsed, or text where there is none
    for arrow in [] if isinstance(found, str) else found.select("a + details > summary"):
        title = arrow.parent.find_previous_sibling("a").get_text().strip()
        arrow["aria-label"] = f"Pages below {title}"
    return found


def _escape_printed_title(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Escape the title that the theme puts, as it is, at the head of a printed page."""
    context["pagetitle"] = escape(context.get("pagetitle", ""))


def _redirect(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        target = f"{app.config.root_doc}.html"
        page = REDIRECT.format(title=escape(app.config.html_title), target=escape(target))
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def _inert_search(app: Sphinx, exception: Exception | None) -> None:
    """Sphinx's search writes the titles that it finds into the page as HTML: here they are text."""
    if exception is None and app.builder.format == "html":
        path = Path(app.outdir, "_static", "searchtools.js")
        script = path.read_text(encoding="utf-8")
        if script.count(SEARCH) != 1:
            raise ExtensionError("searchtools.js of this Sphinx shows titles in another way: adapt SEARCH")
        path.write_text(script.replace(SEARCH, INERT), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool | str]:
    """Connect the parts; Sphinx calls this for the `extensions` entry of `_config.yml`."""
    mathml.setup(app)
    alt_text.setup(app)
    app.connect("source-read", _compose_chapter)
    app.connect("html-page-context", _mend_markup)
    app.connect("html-page-context", _name_toggles, priority=900)  # after the theme has set what writes them
    app.connect("html-page-context", _escape_printed_title, priority=900)  # after the theme has set it
    app.connect("build-finished", _redirect)
    app.connect("build-finished", _inert_search)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
