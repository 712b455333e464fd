"""The package is imported under beartype, so that its signatures are tested by whatever runs."""

import os
from pathlib import Path

from beartype import BeartypeConf
from beartype.claw import beartype_package
from jaxtyping import install_import_hook

# Processes that test side by side with two threads each slow each other tenfold: as the Makefile has it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Two hooks: jaxtyping's knows shapes and can be switched off, but it binds arguments anew at every call,
# which made the drawing of the embedded world three times as slow. Where that names none, beartype's own.
_ROOT = Path(__file__).parents[1]
_DATA = _ROOT / "vlalign_utils" / "data"
_SHAPED = [
    ".".join(path.relative_to(_ROOT).with_suffix("").parts)
    for path in (_ROOT / "vlalign_utils").rglob("*.py")
    if path.name != "__init__.py"
    and (_DATA not in path.parents or "\nfrom jaxtyping import" in path.read_text(encoding="utf-8"))
]
# The numeric tower: an int is welcome wherever a float is, as Python itself has it.
beartype_package("vlalign_utils", conf=BeartypeConf(is_pep484_tower=True, claw_is_pep526=False))
install_import_hook(_SHAPED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from collections.abc import Iterator  # noqa: E402

import jaxtyping  # noqa: E402
import pytest  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the cases that `slow_except` does not name."""
    for item in items:
        fast, case = item.get_closest_marker("slow_except"), getattr(item, "callspec", None)
        if fast and case and not any(f"{case.id}-".startswith(f"{name}-") for name in fast.args):
            item.add_marker("slow")


@pytest.fixture
def checks_off() -> Iterator[None]:
    """Run without beartype, as users do: for errors of our own on arguments of a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA with its processor, in the layout of a hub repository."""
    from tiny_models import build, tiny_processor  # slow to import, and few tests need it

    folder = tmp_path_factory.mktemp("hub") / "tiny-llava"
    vlm, _ = build("llava")
    vlm.model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def all_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model answers nothing; sweeps are tested as if it had answered everything."""
    import numpy as np  # after the import hook

    from vlalign_utils.inference.scoring import Scores
    from vlalign_utils.interventions import sweep

    monkeypatch.setattr(
        sweep, "evaluate", lambda vlm, items, size: Scores(np.ones(len(items)), np.ones(len(items)))
    )


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank pictures: for tests that draw hundreds of items and read what they say alone."""
    from blank_pictures import blank  # after the import hook

    blank(monkeypatch)


@pytest.fixture
def tiny_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretrained parts of a tiny model, as if packages carried them."""
    import tiny_parts as tiny  # after the import hook

    tiny.install(monkeypatch, tmp_path)
