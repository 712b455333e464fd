import pytest
import torch
from tiny_models import build

from vlalign_utils import VLM, load_vlm
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.inference import scoring
from vlalign_utils.tuning import export
from vlalign_utils.tuning.finetune import Budget, tune
from vlalign_utils.tuning.lora import adapted
from vlalign_utils.tuning.strategies import strategies


def lessons(vlm):
    return list(scoring.batches(vlm, load_suite("digits", 4, split="train"), batch_size=4))


@torch.no_grad()
def logits(vlm, batch):
    return vlm.model(**batch.inputs, use_cache=False).logits


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["mllama", "qwen3vl"])
@pytest.mark.parametrize("rank", [0, 2])
def test_what_was_tuned_is_a_folder_like_the_one_it_came_from(chain, rank, tmp_path):
    vlm = load_vlm(f"zoo/{chain}", stage="aligned")
    (batch,) = lessons(vlm)
    band = strategies(vlm.n_layers, (2, 4))["band"]
    before = logits(vlm, batch)
    with tune(vlm, band.adapters(rank) if rank else band, [batch], Budget(steps=2, lr=1e-2)):
        tuned = logits(vlm, batch)
        export.save(vlm, tmp_path / "tuned")
        assert torch.equal(logits(vlm, batch), tuned)
    found = load_vlm(tmp_path / "tuned")
    assert type(found.model) is type(vlm.model)
    assert found.model.state_dict().keys() == vlm.model.state_dict().keys()
    (again,) = lessons(found)
    assert all(torch.equal(again.inputs[name], value) for name, value in batch.inputs.items())
    assert not torch.allclose(tuned, before, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        logits(found, again), tuned, rtol=1e-4 if rank else 0, atol=1e-4 if rank else 0
    )


def test_merging_adds_what_the_matrices_do():
    model = build("llava")[0].model
    vlm = VLM(model)
    assert export.merged(model) is None
    with adapted(vlm, [1], 2) as new:
        for parameter in new:
            torch.nn.init.normal_(parameter)
        query = vlm.layers[1].self_attn.q_proj
        a, b = new[0], new[1]
        state = export.merged(model)
        name = next(n for n, m in model.named_modules() if m is query)
        expected = query.get_base_layer().weight + 2 * b @ a
    torch.testing.assert_close(state[f"{name}.weight"], expected)
    assert state.keys() == model.state_dict().keys()


def test_a_folder_that_is_there_stays(tmp_path):
    vlm = VLM(build("llava")[0].model)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine is there already: name another folder"):
        export.save(vlm, tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_a_failure_leaves_nothing(tmp_path):
    vlm = VLM(build("llava")[0].model, processor=object())
    with pytest.raises(AttributeError):
        export.save(vlm, tmp_path / "new" / "out")
    assert not list((tmp_path / "new").iterdir())


def test_lora_on_weights_elsewhere_is_refused():
    vlm = VLM(build("llava")[0].model)
    with adapted(vlm, [1], 2):
        query = vlm.layers[1].self_attn.q_proj.get_base_layer()
        query.to(torch.float8_e4m3fn)
        with pytest.raises(ValueError, match=r"q_proj is offloaded or quantised"):
            export.merged(vlm.model)
        query.to("meta")
        with pytest.raises(ValueError, match=r"q_proj is offloaded or quantised"):
            export.merged(vlm.model)
