"""architectures.yml, checked: which notebooks run on which models, with which parameters."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from vlalign_utils.paths import NOTEBOOK, ROOT

COMPARISON = "comparison"  # stands where an architecture's name would, for the notebook that compares them
NAME = r"^[a-z0-9][a-z0-9_-]*$"


class RegistryError(ValueError):
    """architectures.yml is wrong, or was asked for something it does not hold."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Architecture(_Strict):
    """One entry: a chain folder of the zoo, a local model folder, or a hub id with its revision."""

    name: str = Field(pattern=NAME)
    title: str = Field(min_length=1)
    description: str = Field(min_length=1)
    model: str = Field(min_length=1)
    revision: str | None = None
    stages: list[str] = []
    notebooks: list[Annotated[str, Field(pattern=NOTEBOOK)]]
    parameters: dict[str, dict[str, JsonValue]] = {}
    repeats: str | None = None  # the entry whose recipe this one ran again from another seed

    @model_validator(mode="after")
    def _known(self) -> "Architecture":
        if self.name == COMPARISON:
            raise ValueError(f"'{COMPARISON}' is the name of the comparison's own folder; choose another")
        for notebook in self.parameters:
            if notebook not in self.notebooks:
                raise ValueError(f"parameters are given for '{notebook}', which is not among its notebooks")
        return self


class Registry(_Strict):
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
        """Entries of a comma list; "all" for every one, "" for the first."""
        if names == "all":
            return list(self.architectures.values())
        wanted = [name.strip() for name in names.split(",") if name.strip()] or [
            next(iter(self.architectures))
        ]
        return [self.architecture(name) for name in dict.fromkeys(wanted)]


def _nearest(name: str, known: Any) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; it has: {', '.join(known)}"


def load(root: Path = ROOT) -> Registry:
    """Read and check the registry. Raises RegistryError naming the entry and the field at fault."""
    path = root / "architectures.yml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RegistryError(f"{path} does not exist") from None
    except yaml.YAMLError as error:
        raise RegistryError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("architectures"), dict):
        raise RegistryError(f"{path} must be a mapping that holds a mapping 'architectures'")
    entries = {}
    for name, entry in data["architectures"].items():
        if not isinstance(entry, dict):
            raise RegistryError(f"{path}: the entry '{name}' must be a mapping")
        entries[name] = {"notebooks": data.get("notebooks", []), **entry, "name": name}
    try:
        return Registry.model_validate({**data, "architectures": entries})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RegistryError(f"{path}: {field}: {first['msg']}") from None
