"""Every public name has an example in its docstring, and it runs from the repository root."""

import doctest
import inspect
from functools import cache

import pytest

import vlalign_utils
from vlalign_utils.paths import ROOT


@pytest.mark.slow_except("Item", "Strategy", "Report", "find_band", "load_suite", "Interval", "Budget", "Run")
@pytest.mark.parametrize("name", vlalign_utils.__all__)
def test_the_examples_of_a_public_name_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = getattr(vlalign_utils, name)
    monkeypatch.setattr(vlalign_utils, "load_vlm", cache(vlalign_utils.load_vlm))  # once for all of a name
    # A public class brings the methods that it inherits within the package.
    parts = [
        part for part in getattr(found, "__mro__", [found]) if part.__module__.startswith("vlalign_utils")
    ]
    # module=False: the methods' globals are those of the hook that checks signatures, not the module's.
    tests = [
        test
        for part in parts
        for test in doctest.DocTestFinder().find(inspect.unwrap(part), part.__name__, False, globs={})
        if test.examples
    ]
    assert tests, f"{name} has no example in its docstring"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        report: list[str] = []
        assert runner.run(test, out=report.append).failed == 0, "".join(report)
