from typing import Any

import pytest
import torch
from plain_hooks import layers
from tiny_models import ITEMS, build, tiny_processor
from torch import nn

from vlalign_utils import VLM, load_suite, load_vlm
from vlalign_utils.inference.scoring import answer_scores, batches
from vlalign_utils.interventions import module_skips, windows
from vlalign_utils.interventions.submodule_removal import PARTS, removed
from vlalign_utils.interventions.sweep import positions

MODULES = {"attention": "self_attn", "MLP": "mlp"}


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


@torch.no_grad()
@pytest.mark.usefixtures("all_solved")
def test_skips_equal_whole_forwards_with_plain_hooks(vlm: VLM) -> None:
    swept = module_skips.skip_sweep(vlm, ITEMS, width=2, seed=5, batch_size=3)
    assert list(swept.prob) == module_skips.skips()
    for batch in batches(vlm, ITEMS, 3):
        at = positions(vlm, vlm.record(**batch.inputs), batch, 5)
        for part, module in MODULES.items():
            for group, told in module_skips.GROUPS.items():
                mask = getattr(at, group)
                for column, (first, last) in enumerate(swept.windows):

                    def skip(_: nn.Module, args: Any, output: Any, mask: torch.Tensor = mask) -> None:
                        (output if isinstance(output, torch.Tensor) else output[0])[mask] = 0

                    held = [layers(vlm)[k].get_submodule(module) for k in range(first, last + 1)]
                    handles = [one.register_forward_hook(skip) for one in held]
                    logits = vlm.model(**batch.inputs).logits
                    for handle in handles:
                        handle.remove()
                    expected = answer_scores(logits, batch.answers).prob
                    found = swept.prob[f"{part} skipped, {told}"][batch.rows, column]
                    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("all_solved")
def test_both_skipped_is_a_freeze_where_layers_hold_nothing_else(vlm: VLM) -> None:
    swept = module_skips.skip_sweep(vlm, ITEMS, width=2, parts=["both"])
    frozen = windows.sweep(vlm, ITEMS, windows.FREEZES, width=2)
    for told in module_skips.GROUPS.values():
        name = told if told in windows.FREEZES else f"all {told}"
        assert swept.prob[f"both skipped, {told}"] == pytest.approx(frozen.prob[name], rel=1e-4)


def test_a_module_that_returns_other_states_is_named(vlm: VLM) -> None:
    (batch,) = batches(vlm, ITEMS)
    mask = torch.ones(2, 3, dtype=torch.bool)
    with (
        pytest.raises(ValueError, match=r"LlamaMLP returns states .* not those of \[2, 3\] tokens"),
        removed(vlm, 0, 0, PARTS["MLP"], mask),
    ):
        vlm.model(**batch.inputs)


def test_images_without_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="does not allow image_positions"):
        module_skips.skip_sweep(load_vlm("zoo/mllama"), load_suite("attributes", 2), width=1)
