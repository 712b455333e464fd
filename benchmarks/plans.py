"""Memory plans of fine-tunes of a model of 7 billion parameters, computed before anything is loaded."""

from typing import Any

from benchmarks.sizes import SIZES, llava
from vlalign_utils.tuning.memory_plan import plan
from vlalign_utils.tuning.strategies import strategies

BAND = (8, 16)  # of 32 layers
TOKENS, ANSWERS = 1024, 64
RANK = 16
ITEMS = 1000


def plans() -> dict[str, Any]:
    """GiB by strategy and optimiser, and what they are of."""
    config = llava(SIZES["7b"], 1).config
    known = strategies(SIZES["7b"].decoder["num_hidden_layers"], BAND)
    band = f"band [{BAND[0]}, {BAND[1]})"
    asked = {"full": known["full"], band: known["band"], f"{band}, LoRA {RANK}": known["band"].adapters(RANK)}
    found = []
    for name, strategy in asked.items():
        for optimiser in ("adamw", "adamw8bit"):
            p = plan(config, strategy, 1, TOKENS, ITEMS, optimiser=optimiser, answers=ANSWERS)
            parts = {
                "weights": p.weights,
                "optimiser states": p.states,
                "most that a step adds": p.step,
                "total": p.total,
                f"recorded on disk, {ITEMS} items": p.prefixes,
            }
            gib = {name: round(held / 2**30, 2) for name, held in parts.items()}
            found.append({"strategy": name, "optimiser": optimiser, **gib})
    about = (
        f"LLaVA-1.5-7B, one sequence of {TOKENS:,} tokens at a time, {ANSWERS} with a loss, bfloat16; "
        "trained weights and their gradients in float32; layers computed again in the backward pass"
    )
    return {"of": about, "rows": found}
