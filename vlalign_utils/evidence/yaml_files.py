"""YAML files written by people: read as UTF-8, each key once, with an error of one sentence."""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, ScalarNode

MERGE = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """A file that cannot be read, is no text, or is no YAML with unique keys."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML silently keeps the last."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, ScalarNode) and key.tag != MERGE]
        seen: set[Any] = set()
        for key in keys:
            name = self.construct_object(key)
            if name in seen:
                raise ConstructorError(None, None, f"'{name}' is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    """What a YAML file holds, None when it is empty; a byte order mark is allowed.

    Raises YamlError in one sentence that names the file and, where YAML is at fault, the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise YamlError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise YamlError(f"{path} is not text in UTF-8") from None
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise YamlError(f"{path} is not YAML: {_why(error)}") from None
    except ValueError as error:  # a date such as 2026-13-45
        raise YamlError(f"{path} is not YAML: {error}") from None
    except RecursionError:
        raise YamlError(f"{path} is not YAML: it is nested too deeply") from None


def _why(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
    where = "" if mark is None else f"line {mark.line + 1}: "
    hint = "; indent with blanks, not tabs" if "'\\t'" in problem else ""
    return f"{where}{problem}{hint}"
