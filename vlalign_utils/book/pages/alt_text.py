"""Text alternatives and numbered captions for the figures of executed notebooks, which arrive without any.

A cell gives its own alternative in its metadata, `mystnb: {image: {alt: ...}}`; where it does not, the
heading above says what the figure is about.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform


class FigureAltText(SphinxPostTransform):
    """Give every image of a code cell an `alt` attribute, and a caption with its number on the page."""

    default_priority = 20  # after myst-nb has chosen one format per output (4)
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Visit each code cell of the page."""
        number = 0
        for cell in list(self.document.findall(nodes.container)):
            if cell.get("nb_element") == "cell_code":
                for image in list(cell.findall(nodes.image)):
                    number += 1
                    heading = _heading(cell)
                    if not image.get("alt"):
                        image["alt"] = f"Figure {number}: {heading}"
                    caption = nodes.caption("", f"Figure {number}. {heading}")
                    image.replace_self(nodes.figure("", image.deepcopy(), caption, ids=[f"figure-{number}"]))


def _heading(cell: nodes.container) -> str:
    parent = cell.parent
    while parent is not None and not isinstance(parent, nodes.section):
        parent = parent.parent
    return parent.next_node(nodes.title).astext() if parent is not None else "output of the cell above"


def setup(app: Sphinx) -> None:
    """Register the transform."""
    app.add_post_transform(FigureAltText)
