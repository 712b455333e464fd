"""One recorded forward used again: replay, resume, early stop, and training on a cached input."""

import torch
from torch import Tensor

from benchmarks.sizes import Size, build
from benchmarks.timing import Row, compare


def rows(size: Size) -> list[Row]:
    """Against the usual full forward; the results are the same to the last bit."""
    vlm, inputs = build(size)
    run, middle = vlm.record(**inputs), vlm.n_layers // 2
    trained = slice(middle, middle + vlm.n_layers // 4)
    vlm.model.requires_grad_(False)
    vlm.layers[trained].requires_grad_(True)

    @torch.no_grad()
    def forward() -> Tensor:
        return vlm.model(**inputs, use_cache=False).logits

    @torch.no_grad()
    def replay(start: int) -> Tensor:
        return vlm.replay(run, start=start).logits

    @torch.no_grad()
    def hidden() -> Tensor:
        return vlm.model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[middle]

    def gradient(logits: Tensor) -> Tensor:
        vlm.model.zero_grad(set_to_none=True)
        logits.float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in vlm.layers[trained].parameters() if p.grad is not None])

    return [
        *compare(
            "answer again",
            {
                "full forward": forward,
                "replay of the decoder": lambda: replay(0),
                f"resume at layer {middle}": lambda: replay(middle),
            },
            size.rounds,
            tolerance=0.0,
        ),
        *compare(
            f"what enters layer {middle}",
            {
                "full forward, all hidden states": hidden,
                "early stop": lambda: vlm.prefix(inputs, stop=middle),
            },
            size.rounds,
            tolerance=0.0,
        ),
        *compare(
            f"gradient of layers {trained.start} to {trained.stop - 1}",
            {
                "full forward, the rest frozen": lambda: gradient(
                    vlm.model(**inputs, use_cache=False).logits
                ),
                f"from the cached input of layer {middle}": lambda: gradient(
                    vlm.replay(run, start=middle).logits
                ),
            },
            size.rounds,
            tolerance=0.0,
        ),
    ]
