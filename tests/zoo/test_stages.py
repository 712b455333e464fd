import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from vlalign_utils.paths import ROOT
from vlalign_utils.zoo import stages
from vlalign_utils.zoo.architecture import (
    build_model,
    build_processor,
    build_tokenizer_for,
    connector,
    vision_tower,
)
from vlalign_utils.zoo.recipe import read_recipe

FAMILIES = ("llava", "qwen3vl", "gemma3", "idefics3", "mllama")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    recipe = read_recipe(ROOT / "zoo" / "recipes" / f"{request.param}.yml")
    tokenizer = build_tokenizer_for(recipe)
    model = build_model(recipe, tokenizer, seed=0)
    model.set_attn_implementation("eager")
    return request.param, recipe, model


def test_the_first_heads_begin_by_looking_one_and_two_tokens_back(family):
    _, recipe, model = family
    torch.manual_seed(0)
    stages.initialise(model, recipe.embedding_std)
    ids = torch.randint(10, model.config.get_text_config().vocab_size, (4, 60))
    with torch.no_grad():
        attention = model.get_decoder()(input_ids=ids, output_attentions=True).attentions
    seen = [layer for layer in attention if layer is not None and layer.shape[-1] == 60]
    for layer in range(len(stages.PREVIOUS)):
        for head, back in enumerate(stages.PREVIOUS):
            looks = seen[layer][:, head].diagonal(-back, 1, 2)[:, 8:].mean()
            assert looks > 0.35
    assert seen[0][:, 2].diagonal(-1, 1, 2)[:, 8:].mean() < 0.2


def test_parts_are_disjoint_and_leave_nothing_but_the_tower(family):
    _, recipe, model = family
    parts = {stage: stages.trained_parts(stage, model, recipe) for stage in ("base", "aligned", "tuned")}
    owned = {stage: {id(p) for part in own for p in part.parameters()} for stage, own in parts.items()}
    assert not owned["base"] & owned["aligned"]
    assert owned["base"] | owned["aligned"] == owned["tuned"]
    between = {id(p) for part in connector(model, recipe) for p in part.parameters()}
    tower = {id(p) for p in vision_tower(model, recipe).parameters()} - between
    assert not tower & owned["tuned"]
    assert tower | owned["tuned"] == {id(p) for p in model.parameters()}


@pytest.mark.slow_except("idefics3", "llava", "mllama", "qwen3vl")
def test_stage_vision_trains_the_tower_and_gives_the_connector_back_as_it_was(family, tmp_path):
    _, recipe, model = family
    short = recipe.stages.vision.model_copy(update={"steps": 1, "batch_size": 4})
    recipe = recipe.model_copy(update={"stages": recipe.stages.model_copy(update={"vision": short})})
    processor = build_processor(recipe, build_tokenizer_for(recipe))
    inside = {id(p) for part in connector(model, recipe) for p in part.parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stages.train_stage("vision", model, processor, recipe, Accelerator(cpu=True), tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    tower = {id(p) for p in vision_tower(model, recipe).parameters()} - inside
    assert moved
    assert moved <= {name for name, p in model.named_parameters() if id(p) in tower}
