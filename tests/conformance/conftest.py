"""Tests of one family run one after another, in one process: they share its model and its trial."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by family, and keep each together between the processes of pytest-xdist."""

    def family(item: pytest.Item) -> str:
        spec = getattr(item, "callspec", None)
        return str(spec.params.get("name", "")) if spec and item.get_closest_marker("conformance") else ""

    for item in items:
        if family(item):
            item.add_marker(pytest.mark.xdist_group(family(item)))
    items.sort(key=family)
