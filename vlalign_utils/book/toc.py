"""`_toc.yml`, generated from the registry: one part per architecture, one chapter per notebook."""

from typing import Any

import yaml

from vlalign_utils.pipeline.registry import COMPARISON, Registry

GENERATED = "_generated"  # folder of pages that the build writes from results
PAGES = ("suites", "things_sources", "families", "benchmarks")
HEADER = "# Generated from architectures.yml: python -m vlalign_utils toc\n"


def card(arch: str) -> str:
    """Document of an architecture's model card, relative to the root and without suffix."""
    return f"{GENERATED}/{arch}"


def chapter(arch: str, notebook: str) -> str:
    """Document of an executed notebook."""
    return f"book/results/{arch}/{notebook}"


def render(registry: Registry) -> str:
    """Text of `_toc.yml`."""
    parts = [_part("What was found", [f"{GENERATED}/claims"])]
    parts.append(_part("How it works", ["book/methods", *(f"{GENERATED}/{page}" for page in PAGES)]))
    for arch in registry.architectures.values():
        chapters = [card(arch.name), *(chapter(arch.name, notebook) for notebook in arch.notebooks)]
        parts.append(_part(arch.title, chapters))
    parts.append(_part("Across architectures", [chapter(COMPARISON, registry.comparison)]))
    parts.append(
        _part(
            "Use it yourself", ["book/reproduce", f"{GENERATED}/data", "book/glossary", "book/bibliography"]
        )
    )
    toc = {"format": "jb-book", "root": "book/index", "parts": parts}
    return HEADER + yaml.safe_dump(toc, sort_keys=False, allow_unicode=True)


def _part(caption: str, documents: list[str]) -> dict[str, Any]:
    return {"caption": caption, "chapters": [{"file": document} for document in documents]}
