"""Text alternatives for the figures of executed notebooks, which arrive without any.

A cell gives its own in its metadata, `mystnb: {image: {alt: ...}}`; where it does not, the heading above says
what the figure is about.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform


class FigureAltText(SphinxPostTransform):
    """Give every image of a code cell an `alt` attribute."""

    default_priority = 20  # after myst-nb has chosen one format per output (4)
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Visit each code cell of the page."""
        for cell in self.document.findall(nodes.container):
            if cell.get("nb_element") == "cell_code":
                images = [image for image in cell.findall(nodes.image) if not image.get("alt")]
                for number, image in enumerate(images, start=1):
                    suffix = f" ({number} of {len(images)})" if len(images) > 1 else ""
                    image["alt"] = f"Figure: {_heading(cell)}{suffix}"


def _heading(cell: nodes.container) -> str:
    parent = cell.parent
    while parent is not None and not isinstance(parent, nodes.section):
        parent = parent.parent
    return parent.next_node(nodes.title).astext() if parent is not None else "output of the cell above"


def setup(app: Sphinx) -> None:
    """Register the transform."""
    app.add_post_transform(FigureAltText)
