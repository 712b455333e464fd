"""Replay and resume against the usual full forward, interleaved in one run: ratios, not seconds.

A LLaVA with random weights (12 layers of width 512, 256 image tokens and 64 of text) on the CPU, one thread.
Every way's answer is checked against the full forward's before anything is timed.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from vlalign_utils import VLM, stats
from vlalign_utils.paths import write_atomic

ROUNDS = 12
MIDDLE = 6
TRAINED = slice(6, 9)  # decoder layers
RESULT = Path(__file__).parent / "results" / "driver.json"


def build() -> tuple[VLM, dict[str, Tensor]]:
    """The model and one row of inputs."""
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12, "num_attention_heads": 8}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **shape, "image_size": 224, "patch_size": 14},
        text_config={"model_type": "llama", **shape, "vocab_size": 2000},
        image_token_index=1999,
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.randint(3, 1999, (1, 320))
    ids[:, 8:264] = 1999
    pixels = torch.randn(1, 3, 224, 224)
    return VLM(model), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
    }


def ways(vlm: VLM, inputs: dict[str, Tensor]) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """Per task, its ways; the first is the usual one."""
    run = vlm.record(**inputs)
    vlm.model.requires_grad_(False)
    vlm.layers[TRAINED].requires_grad_(True)

    def forward() -> Tensor:
        with torch.no_grad():
            return vlm.model(**inputs, use_cache=False).logits

    def replay(start: int) -> Tensor:
        with torch.no_grad():
            return vlm.replay(run, start=start).logits

    def gradient(logits: Tensor) -> Tensor:
        vlm.model.zero_grad(set_to_none=True)
        logits.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in vlm.layers[TRAINED].parameters() if p.grad is not None])

    return {
        "answer again": {
            "full forward": forward,
            "replay of the decoder": lambda: replay(0),
            f"resume at layer {MIDDLE}": lambda: replay(MIDDLE),
        },
        "gradient of layers 6 to 8": {
            "full forward, the rest frozen": lambda: gradient(vlm.model(**inputs, use_cache=False).logits),
            "from the cached input of layer 6": lambda: gradient(vlm.replay(run, start=TRAINED.start).logits),
        },
    }


def main() -> None:
    """Measure, print and write `results/driver.json`."""
    torch.set_num_threads(1)
    vlm, inputs = build()
    rows = []
    for task, by_name in ways(vlm, inputs).items():
        usual, *others = by_name
        expected = by_name[usual]()
        for name in others:
            difference = (by_name[name]() - expected).abs().max().item()
            if difference:
                raise AssertionError(f"{name} differs from {usual} by {difference}")
        seconds: dict[str, list[float]] = {name: [] for name in by_name}
        for _ in range(ROUNDS):
            for name, way in by_name.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
        for name in others:
            ratios = np.array(seconds[usual]) / np.array(seconds[name])
            mean = stats.bootstrap_mean(ratios, seed=0)
            rows.append({"task": task, "way": name, "against": usual, "difference": 0.0})
            rows[-1] |= {
                "times faster": round(mean.value, 2),
                "low": round(mean.low, 2),
                "high": round(mean.high, 2),
            }
            print(f"{task}: {name} is {mean} times as fast as {usual} (N = {ROUNDS} rounds, same numbers)")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {"device": f"CPU, one thread, {platform.machine()}", "rounds": ROUNDS, **versions, "rows": rows}
    write_atomic(RESULT, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
