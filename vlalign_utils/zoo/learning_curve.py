"""What the last stage of a chain could do after parts of its training, on the suites whose bars it misses.

The rate has fallen to nearly nothing at the last of these points alone: an earlier one is a little lower than
a training of just that length would be.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from vlalign_utils.loading.stage_file import STAGE, write_stage
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.bars import THINGS, measured
from vlalign_utils.zoo.chain_scores import ITEMS, score_stages
from vlalign_utils.zoo.from_parts import build_processor, fresh_model
from vlalign_utils.zoo.parts_build import CONNECTOR, TOWER, checkpoint, shell_of
from vlalign_utils.zoo.parts_recipe import PartsRecipe
from vlalign_utils.zoo.parts_stages import marked, marks
from vlalign_utils.zoo.recipe import STAGES
from vlalign_utils.zoo.scores_file import CURVE, FILE, ChainScores, read_scores


def score_curve(folder: Path, recipe: PartsRecipe, world: str, device: str = "cpu") -> ChainScores | None:
    """Score what training left on its way, and the last stage, on the suites whose bars it misses.

    The scores are kept in the chain's `curve.json`. Returns None, and computes nothing, where every bar is
    reached, or training was not done on this machine. Raises ValueError for what is damaged.
    """
    found, last = read_scores(folder / FILE), STAGES[-1]
    if found is None:
        return None
    scored = {bar: measured([found], last, bar) for bar in THINGS}
    missed = [bar.suite for bar, score in scored.items() if score is not None and not bar.reached(score)]
    schedule, left = recipe.stages.tuned, checkpoint(folder.name, recipe, last)
    places = {step * schedule.batch_size: marked(left, step) for step in marks(schedule)}
    points = {images: path for images, path in places.items() if path.is_file()}
    if not missed or not points:
        return None
    stages = {str(images): _stage(path, recipe) for images, path in points.items()}
    stages[str(schedule.steps * schedule.batch_size)] = folder / last
    return score_stages(folder / CURVE, stages, world, list(dict.fromkeys(missed)), ITEMS // 2, device)


def _stage(path: Path, recipe: PartsRecipe) -> Path:
    """The folder of a stage with the weights of a file, beside it; written once."""
    into = path.with_suffix("")
    if not (into / STAGE).is_file():
        shell, tower = shell_of(recipe), ROOT / "zoo" / recipe.tower / TOWER
        weights = load_file(path)
        lora = {name: value for name, value in weights.items() if ".lora_" in name}
        connector = {name: value for name, value in weights.items() if name not in lora}
        own: dict[str, Any] = {"parts": shell.parts, "tokens": shell.tokens, "shared": [tower]}
        own |= {"weights": {CONNECTOR: connector}, "lora": lora, "alpha": 2.0 * recipe.rank}
        model = fresh_model(recipe.seed, weights=[tower], shell=shell)
        write_stage(into, model, build_processor(shell), **own)
    return into
