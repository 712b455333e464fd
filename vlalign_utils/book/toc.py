"""`_toc.yml`, generated from the registry: a part for each model, and one for all laboratory models."""

from collections.abc import Sequence
from typing import Any

import yaml

from vlalign_utils.pipeline.registry import COMPARISON, Architecture, Registry

GENERATED = "_generated"  # folder of pages that the build writes from results
PAGES = ("suites", "things_sources", "families", "benchmarks")
ABILITIES = "book/abilities"  # what models of pretrained parts can do
LABORATORY = "book/laboratory"  # what laboratory models are for
WHICH = "book/which_layers"  # what follows for someone who tunes, adapts or prunes
Entry = dict[str, Any]
HEADER = "# Generated from architectures.yml: python -m vlalign_utils toc\n"


def card(arch: str) -> str:
    """Document of an architecture's model card, relative to the root and without suffix."""
    return f"{GENERATED}/{arch}"


def chapter(arch: str, notebook: str) -> str:
    """Document of an executed notebook."""
    return f"book/results/{arch}/{notebook}"


def render(registry: Registry) -> str:
    """Text of `_toc.yml`: what was found, models of real data, how it works, laboratory models."""
    archs = list(registry.architectures.values())
    small, others = [[a for a in archs if a.laboratory is laboratory] for laboratory in (True, False)]
    found = [f"{GENERATED}/claims", WHICH, *([ABILITIES] if others else [])]
    parts = [_part("What was found", _files(found))]
    for arch in others:
        if arch.repeats is None:
            again = [_nested(other) for other in others if other.repeats == arch.name]
            parts.append(_part(arch.title, [*_files([card(arch.name), *_chapters(arch)]), *again]))
    parts.append(_part("How it works", _files(["book/methods", *(f"{GENERATED}/{page}" for page in PAGES)])))
    if small:
        parts.append(_part("Laboratory models", [{"file": LABORATORY}, *map(_nested, small)]))
    parts.append(_part("Across models", _files([chapter(COMPARISON, registry.comparison)])))
    use = ["book/reproduce", f"{GENERATED}/data", "book/glossary", "book/bibliography"]
    parts.append(_part("Use it yourself", _files(use)))
    toc = {"format": "jb-book", "root": "book/index", "parts": parts}
    return HEADER + yaml.safe_dump(toc, sort_keys=False, allow_unicode=True)


def _nested(arch: Architecture) -> Entry:
    """A model's card with its chapters below it."""
    return {"file": card(arch.name), "sections": _files(_chapters(arch))}


def _chapters(arch: Architecture) -> list[str]:
    return [chapter(arch.name, notebook) for notebook in arch.notebooks]


def _files(documents: list[str]) -> list[Entry]:
    return [{"file": document} for document in documents]


def _part(caption: str, chapters: Sequence[Entry]) -> dict[str, Any]:
    return {"caption": caption, "chapters": list(chapters)}
