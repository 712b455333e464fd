"""Check the HTML that an executed notebook brings to a page: tables, and nothing that a browser would run."""

from html.parser import HTMLParser

from nbformat import NotebookNode

from vlalign_utils.pipeline.normalise import PageError

TABLE = {"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "div", "p", "style", "br"}
ATTRIBUTES = {"border", "class", "colspan", "rowspan", "scoped", "style"}
RUN = ("text/markdown", "text/latex", "application/javascript")  # Markdown may hold HTML


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.wrong: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        extra = sorted({name for name, _ in attrs} - ATTRIBUTES)
        if tag not in TABLE:
            self.wrong = self.wrong or f"<{tag}>"
        elif extra:
            self.wrong = self.wrong or f"<{tag} {extra[0]}=...>"


def check_markup(notebook: NotebookNode, name: str) -> None:
    """Raise PageError, naming the cell, for an output with HTML beyond a table's, or that a browser runs.

    Data and names from outside could carry it; a pandas table escapes what it shows.
    """
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            reader = _Reader()
            reader.feed(data.get("text/html", ""))
            reader.close()
            wrong = reader.wrong or next((mime for mime in RUN if mime in data), None)
            if wrong:
                raise PageError(
                    f"{name}: the output of cell {number} has {wrong}; a page takes text, figures and "
                    "tables: print it, or show it as a DataFrame"
                )
