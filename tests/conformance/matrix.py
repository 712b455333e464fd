"""`make families`: write `book/families.json`, what the trial finds for every family, for the book."""

import json
import sys
from pathlib import Path

import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from family import UNBUILT
from test_conformance import FAMILIES, recorded

from vlalign_utils.book.pages.families import FILE
from vlalign_utils.paths import ROOT, write_atomic


def main() -> None:
    """Try every family once."""
    families = {}
    for name in sorted(FAMILIES):
        vlm, _, _, allowed = recorded(name)
        families[name] = {
            "group": FAMILIES[name].group,
            "model": allowed.model,
            "layers": vlm.n_layers,
            "whole_from": allowed.whole_from,
            "findings": {what: [f.works, f.detail] for what, f in allowed.findings().items()},
        }
    record = {
        "transformers": transformers.__version__,
        "families": families,
        "unbuilt": dict(sorted(UNBUILT.items())),
    }
    write_atomic(ROOT / FILE, json.dumps(record, indent=1) + "\n")
    print(f"{FILE}: {len(families)} families, {len(UNBUILT)} not built")


if __name__ == "__main__":
    main()
