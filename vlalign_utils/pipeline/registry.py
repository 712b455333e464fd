"""architectures.yml, checked: which notebooks run on which models, with which parameters."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from vlalign_utils.evidence.strict import Strict
from vlalign_utils.evidence.yaml_files import YamlError, load_yaml
from vlalign_utils.paths import NOTEBOOK, ROOT

COMPARISON = "comparison"  # stands where an architecture's name would, for the notebook that compares them
NAME = r"^[a-z0-9][a-z0-9_-]*$"
BASE, TUNED = "base", "tuned"
ORDER = (BASE, "aligned", TUNED)  # of the stages of a chain, as they are trained
# Keys of `data.worlds.WORLDS`, written out: the comparison reads the registry, and depends on no data.
World = Literal["drawn", "things"]
DRAWN: World = "drawn"


class RegistryError(ValueError):
    """architectures.yml is wrong, or was asked for something it does not hold."""


class Architecture(Strict):
    """One entry: a folder of stages, the folder of one model, or a hub id with its revision.

    One model is stage `tuned`; `base`, the language model that it was made from, adds stage `base`: the same
    model with that one's weights in its decoder. `dtype` and `device_map` are those of `load_vlm`.
    `world` is the one whose suites its chapters ask. `cell_timeout` is in seconds, for every cell of its
    chapters.
    """

    name: str = Field(pattern=NAME)
    title: str = Field(min_length=1)
    description: str = Field(min_length=1)
    model: str = Field(min_length=1)
    revision: str | None = None
    base: str | None = Field(default=None, min_length=1)
    base_revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: Literal["auto"] | dict[str, int | str] | None = None
    world: World = DRAWN
    stages: list[str] = Field(default_factory=list)
    notebooks: list[Annotated[str, Field(pattern=NOTEBOOK)]]
    parameters: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    repeats: str | None = None  # the entry whose recipe this one ran again from another seed
    cell_timeout: int | None = Field(default=None, ge=1)

    @property
    def laboratory(self) -> bool:
        """Whether it is a model of this project's drawn world: small, and trained from its first weight."""
        return self.world == DRAWN and self.model.startswith("zoo/")

    @model_validator(mode="after")
    def _known(self) -> "Architecture":
        if self.name == COMPARISON:
            raise ValueError(f"'{COMPARISON}' is the name of the comparison's own folder; choose another")
        for notebook in self.parameters:
            if notebook not in self.notebooks:
                raise ValueError(f"parameters are given for '{notebook}', which is not among its notebooks")
        if len(set(self.stages)) < len(self.stages):
            raise ValueError("a stage is named twice in 'stages'")
        if self.base_revision is not None and self.base is None:
            raise ValueError("'base_revision' is given without 'base', the model that it is the revision of")
        if self.base is not None and self.stages not in ([], [BASE, TUNED]):
            raise ValueError(f"with 'base' the stages are [{BASE}, {TUNED}]; leave 'stages' out")
        return self


class Registry(Strict):
    """All of architectures.yml, in its order."""

    notebooks: list[Annotated[str, Field(pattern=NOTEBOOK)]] = Field(min_length=1)
    comparison: str = Field(pattern=NOTEBOOK)
    architectures: dict[str, Architecture] = Field(min_length=1)

    @model_validator(mode="after")
    def _repeated(self) -> "Registry":
        for entry in self.architectures.values():
            if entry.repeats is not None and entry.repeats not in self.originals():
                raise ValueError(f"'{entry.name}' repeats '{entry.repeats}', which is no entry of its own")
        return self

    def originals(self) -> list[str]:
        """Names of the entries that repeat no other: one per architecture, whatever the number of seeds."""
        return [name for name, entry in self.architectures.items() if entry.repeats is None]

    def architecture(self, name: str) -> Architecture:
        """The entry with this name. Raises RegistryError naming the nearest one."""
        if name not in self.architectures:
            raise RegistryError(
                f"no architecture '{name}' in architectures.yml{_nearest(name, self.architectures)}"
            )
        return self.architectures[name]

    def select(self, names: str = "") -> list[Architecture]:
        """Entries of a comma list; "all" for every one, "" for the first laboratory model, else the first."""
        every = list(self.architectures.values())
        if names == "all":
            return every
        quick = [entry for entry in every if entry.laboratory] or every
        wanted = [name.strip() for name in names.split(",") if name.strip()] or [quick[0].name]
        return [self.architecture(name) for name in dict.fromkeys(wanted)]


def _nearest(name: str, known: Any) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; it has: {', '.join(known)}"


def load(root: Path = ROOT) -> Registry:
    """Read and check the registry. Raises RegistryError naming the entry and the field at fault."""
    path = root / "architectures.yml"
    try:
        data = load_yaml(path)
    except YamlError as error:
        raise RegistryError(str(error)) from None
    if not isinstance(data, dict) or not isinstance(data.get("architectures"), dict):
        raise RegistryError(f"{path} must be a mapping that holds a mapping 'architectures'")
    entries = {}
    for name, entry in data["architectures"].items():
        if not isinstance(entry, dict):
            raise RegistryError(f"{path}: the entry '{name}' must be a mapping")
        entries[name] = {"notebooks": data.get("notebooks", []), **entry, "name": name}
    try:
        known = Registry.model_validate({**data, "architectures": entries})
        named = {
            name: entry if entry.stages else entry.model_copy(update={"stages": _stages(entry, root)})
            for name, entry in known.architectures.items()
        }
        return known.model_copy(update={"architectures": named})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RegistryError(f"{path}: {field}: {first['msg']}") from None


def _stages(entry: Architecture, root: Path) -> list[str]:
    """The stages of an entry that names none: those in its folder, or those of one model."""
    if entry.base is not None:
        return [BASE, TUNED]
    folder = root / entry.model
    found = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if not found or (folder / "config.json").is_file():
        return [TUNED]
    if not set(found) <= set(ORDER):
        raise RegistryError(
            f"architectures.{entry.name}: {folder} holds the stages {', '.join(found)}; write in 'stages' "
            "which to show, in the order in which they were trained"
        )
    return [stage for stage in ORDER if stage in found]
