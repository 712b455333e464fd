import pytest
import yaml

from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.parts_recipe import PartsRecipe
from vlalign_utils.zoo.recipe import read_any_recipe, read_recipe

RECIPES = ROOT / "zoo" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yml")), ids=lambda p: p.stem)
def test_recipes_in_the_repository_are_valid(path):
    recipe = read_any_recipe(path)
    if isinstance(recipe, PartsRecipe):
        assert read_any_recipe(RECIPES / f"{recipe.tower}.yml").tower == recipe.tower
        if recipe.teacher is not None:
            assert read_any_recipe(RECIPES / f"{recipe.teacher}.yml").side == recipe.side
    else:
        assert recipe.model["text_config"]["num_hidden_layers"] >= 8


def test_a_recipe_takes_from_another_what_it_does_not_say():
    llava, again, other = (read_recipe(RECIPES / f"{name}.yml") for name in ("llava", "llava-1", "mllama"))
    assert again == llava.model_copy(update={"seed": 1})
    assert other.stages == llava.stages
    assert other.model["model_type"] == "mllama"


def test_seeds_of_a_chain_from_parts_share_its_tower():
    first, *others = (read_any_recipe(RECIPES / f"smollm{name}.yml") for name in ("", "-1", "-2"))
    assert [other.seed for other in others] == [1, 2]
    assert all(other.model_copy(update={"seed": 0}) == first for other in others)


def test_what_a_recipe_from_parts_does_not_set_is_not_written():
    """Checkpoints are named after what is written: a field that came later must not rename them."""
    schedule = {"steps": 1, "batch_size": 2, "lr": 0.1}
    own = {"seed": 0, "side": 160, "tower": "a", "tower_trained": ".*", "rank": 4}
    recipe = PartsRecipe.model_validate(
        own | {"stages": dict.fromkeys(("vision", "aligned", "tuned"), schedule)}
    )
    whole = '{"steps":1,"batch_size":2,"lr":0.1,"warmup":0.05,"weight_decay":0.01,"clip":1.0}'
    assert recipe.model_dump_json() == (
        '{"seed":0,"side":160,"tower":"a","tower_trained":".*","rank":4,'
        f'"stages":{{"vision":{whole},"aligned":{whole},"tuned":{whole}}}}}'
    )
    taught = recipe.model_copy(update={"teacher": "b"})
    assert taught.model_dump() == recipe.model_dump() | {"teacher": "b"}


def test_a_recipe_that_is_not_there_names_those_that_are():
    with pytest.raises(FileNotFoundError, match=r"no recipe nope.yml in recipes/; there are: .*llava"):
        read_recipe(RECIPES / "nope.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "bad.yml is not YAML"), ("- 1", "must be a mapping"), ("like: bad", "leads back to itself")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    (tmp_path / "bad.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "bad.yml")


def test_a_wrong_field_is_named(tmp_path):
    content = yaml.safe_load((RECIPES / "llava.yml").read_text())
    content["stages"]["base"]["steps"] = 0
    (tmp_path / "bad.yml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"bad.yml: stages.base.steps"):
        read_recipe(tmp_path / "bad.yml")
