"""Sweeps over layers: the usual loop of full forwards, nnsight, and replays that share what they can."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.sizes import TEXT_BEFORE, Size, build
from benchmarks.timing import Row, compare
from vlalign_utils import FreezeTokens, Knockout, Patch
from vlalign_utils.driver.edits import Edit

WIDTH = 3  # layers per window


def rows(size: Size) -> list[Row]:
    """Every way starts from the inputs, and its own record is timed with it; the donor's states are given."""
    vlm, inputs = build(size)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(inputs["pixel_values"].shape, generator=generator)
    donor = {**inputs, "pixel_values": noise.to(inputs["pixel_values"])}
    tokens = inputs["input_ids"].shape[1]
    place = torch.arange(tokens, device=vlm.device)[None]
    image = (place >= TEXT_BEFORE) & (place < TEXT_BEFORE + size.image_tokens)
    question = (place >= TEXT_BEFORE + size.image_tokens) & (place < tokens - 1)
    one_word = place == TEXT_BEFORE + size.image_tokens + size.text_tokens // 4
    one_patch = place == TEXT_BEFORE + size.image_tokens // 2
    values = vlm.record(stop=vlm.n_layers, **donor).resid[:-1]
    spans = [(first, first + WIDTH - 1) for first in range(vlm.n_layers - WIDTH + 1)]

    def swept(sets: Sequence[Sequence[Edit]]) -> Tensor:
        run = vlm.record(kv_cache=True, **inputs)
        by_row = dict(vlm.replays(run, sets, keep=1))
        return torch.stack([by_row[i][:, -1] for i in range(len(by_row))])

    def patch_ways(where: Tensor) -> dict[str, Callable[[], Tensor]]:
        return {
            "full forwards with hooks": lambda: naive.patch_sweep(vlm, inputs, values, where),
            "nnsight": lambda: naive.patch_sweep_nnsight(vlm, inputs, values, where),
            "replays": lambda: swept([[Patch(k, where, value)] for k, value in enumerate(values)]),
        }

    # In half precision the order of sums shows: the comparison is of the same numbers, not of the same bits.
    tolerance = 1e-5 if size.dtype == torch.float32 else 0.05
    found = []
    for task, ways in {
        "patch one word in every layer": patch_ways(one_word),
        "patch one image token in every layer": patch_ways(one_patch),
        "patch all image tokens in every layer": {
            name: way for name, way in patch_ways(image).items() if name != "nnsight"
        },
        f"freeze image tokens, windows of {WIDTH}": {
            "full forwards with hooks": lambda: naive.freeze_sweep(vlm, inputs, image, WIDTH),
            "replays": lambda: swept([[FreezeTokens(*span, image)] for span in spans]),
        },
        f"knock out image to question, windows of {WIDTH}": {
            "full forwards with hooks": lambda: naive.knockout_sweep(vlm, inputs, question, image, WIDTH),
            "replays": lambda: swept([[Knockout(*span, question, image)] for span in spans]),
        },
    }.items():
        found += compare(task, ways, size.rounds, tolerance)
    return found
