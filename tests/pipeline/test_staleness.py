import json
import re

import nbformat
import pytest

from vlalign_utils.evidence.results import Results
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import registry, staleness
from vlalign_utils.pipeline.normalise import digest
from vlalign_utils.pipeline.parameters import ParameterError

V4 = nbformat.v4
REGISTRY = """
notebooks: [01_a, 02_b]
comparison: 90_c
architectures:
  one: {title: One, description: D, model: zoo/one}
  two: {title: Two, description: D, model: zoo/two, parameters: {02_b: {seed: 5}}}
"""


@pytest.fixture
def root(tmp_path):
    """A project whose book holds everything, executed on another machine."""
    (tmp_path / "architectures.yml").write_text(REGISTRY)
    (tmp_path / "notebooks").mkdir()
    for name in ("01_a", "02_b", "90_c"):
        first = "archs" if name == "90_c" else "arch"
        cell = V4.new_code_cell(f'{first} = ""\nout_dir = ""\nseed = 0\nquick = False')
        cell.metadata["tags"] = ["parameters"]
        nbformat.write(V4.new_notebook(cells=[cell]), tmp_path / "notebooks" / f"{name}.ipynb")
    for arch in ("one", "two"):
        (tmp_path / "zoo" / arch).mkdir(parents=True)
        (tmp_path / "zoo" / arch / "config.json").write_text("{}")
        for name in ("01_a", "02_b"):
            publish(tmp_path, name, arch)
    return tmp_path


def publish(root, notebook, arch):
    params, inputs = staleness.plan(notebook, arch, {}, False, root)
    page = V4.new_notebook(cells=[V4.new_code_cell("1", id="cell-00")])
    results = Results(
        notebook=notebook, arch=arch, params=params, input_hash=inputs, notebook_digest=digest(page)
    )
    folder = root / "book" / "results" / arch
    write_atomic(folder / f"{notebook}.ipynb", nbformat.writes(page))
    write_atomic(folder / f"{notebook}.json", results.sealed().dumps())
    return staleness.marker(root, arch, notebook, inputs)


def wanted(root, archs=""):
    return [run.split("/")[2:4] for run in staleness.runs(archs, root)]


def test_a_fresh_clone_runs_the_first_architecture_and_trusts_the_others(root):
    assert wanted(root) == [["one", "01_a"], ["one", "02_b"]]
    assert wanted(root, "two") == [["two", "01_a"], ["two", "02_b"]]
    assert len(wanted(root, "all")) == 4


def test_an_unselected_architecture_runs_when_its_inputs_changed(root):
    (root / "zoo" / "two" / "config.json").write_text("{ }")
    assert wanted(root) == [["one", "01_a"], ["one", "02_b"], ["two", "01_a"], ["two", "02_b"]]


def test_a_larger_model_is_never_run_unasked(root):
    """Its chapters are shown as they are, and known to be of an earlier state."""
    text = REGISTRY.replace("model: zoo/two", "model: zoo/two, world: things")
    (root / "architectures.yml").write_text(text)
    for name in ("01_a", "02_b"):
        publish(root, name, "two")
    assert staleness.outdated(root) == []
    (root / "zoo" / "two" / "config.json").write_text("{ }")
    assert wanted(root) == [["one", "01_a"], ["one", "02_b"]]
    assert staleness.outdated(root) == [("two", "01_a"), ("two", "02_b")]
    assert wanted(root, "two") == [["two", "01_a"], ["two", "02_b"]]
    assert len(wanted(root, "all")) == 4
    (root / "book" / "results" / "two" / "01_a.json").unlink()  # what is missing, the build names
    assert staleness.outdated(root) == [("two", "02_b")]
    assert wanted(root) == [["one", "01_a"], ["one", "02_b"]]


def test_pages_say_which_chapters_are_of_an_earlier_state(root):
    before = staleness.page_hash(root)
    notebook = root / "notebooks" / "01_a.ipynb"
    notebook.write_text(notebook.read_text().replace("seed = 0", "seed = 1"))
    assert staleness.page_hash(root) != before


def test_parameters_of_the_registry_count_as_inputs(root):
    (root / "architectures.yml").write_text(REGISTRY.replace("seed: 5", "seed: 6"))
    assert wanted(root)[2:] == [["two", "02_b"]]


@pytest.mark.parametrize(
    "damage",
    [
        "tampered page",
        "cut page",
        "lost page",
        "lost json",
        "broken json",
        "one digit",
        "no text",
        "no digest",
    ],
)
def test_a_pair_that_does_not_match_counts_as_missing(root, damage):
    page = root / "book" / "results" / "two" / "01_a.ipynb"
    if damage == "tampered page":
        page.write_text(page.read_text().replace('"1"', '"2"'))
    elif damage == "lost page":
        page.unlink()
    elif damage == "lost json":
        page.with_suffix(".json").unlink()
    elif damage == "cut page":
        page.write_text(page.read_text()[:-40])
    elif damage == "one digit":
        found = page.with_suffix(".json")
        found.write_text(found.read_text().replace('"seed": 0', '"seed": 1'))
    elif damage == "no digest":
        found = page.with_suffix(".json")
        found.write_text(json.dumps({**json.loads(found.read_text()), "content_digest": ""}))
    else:
        page.with_suffix(".json").write_bytes(b"{" if damage == "broken json" else b"\xff\xfe")
    assert staleness.published("01_a", "two", root) is None
    assert wanted(root)[2:] == [["two", "01_a"]]


def test_a_marker_counts_only_while_the_book_holds_its_result(root):
    done = publish(root, "01_a", "one")
    write_atomic(done, "")
    assert staleness.fresh("01_a", "one", root)
    staleness.runs("", root)
    assert done.is_file()
    (root / "book" / "results" / "one" / "01_a.json").unlink()
    assert not staleness.fresh("01_a", "one", root)
    staleness.runs("", root)
    assert not done.exists()


def test_the_comparison_goes_stale_with_any_result(root):
    write_atomic(publish(root, "90_c", "comparison"), "")
    assert staleness.fresh("90_c", "comparison", root)
    (root / "book" / "results" / "two" / "02_b.json").unlink()
    assert not staleness.fresh("90_c", "comparison", root)


def test_the_comparison_belongs_to_no_architecture(root):
    with pytest.raises(ParameterError, match="use --arch comparison for it alone"):
        staleness.plan("90_c", "one", {}, False, root)
    with pytest.raises(ParameterError, match="use --arch comparison for it alone"):
        staleness.plan("01_a", "comparison", {}, False, root)


def test_pages_are_current_until_a_source_changes(root):
    assert not staleness.pages_current(root)
    write_atomic(root / "_build" / "html" / "index.html", "built")
    write_atomic(root / ".cache" / "pages", staleness.page_hash(root))
    write_atomic(root / "book" / "results" / "depth.svg", "drawn by a build")
    assert staleness.pages_current(root)
    write_atomic(root / "book" / "index.md", "# New")
    assert not staleness.pages_current(root)


def test_a_notebook_that_is_no_chapter_of_the_architecture_is_refused(root):
    text = (root / "architectures.yml").read_text()
    write_atomic(
        root / "architectures.yml", text.replace("model: zoo/one}", "model: zoo/one, notebooks: [01_a]}")
    )
    with pytest.raises(ParameterError, match=r"one has no chapter '02_b' in architectures\.yml"):
        staleness.plan("02_b", "one", {}, False, root)
    with pytest.raises(ParameterError, match=r"there is no notebook '\.\./notebooks/01_a'"):
        staleness.plan("../notebooks/01_a", "one", {}, False, root)


def test_committed_results_hold_no_address_of_an_object():
    """What Python writes of an object that a cell happened to return is another one in every run."""
    pages = sorted((ROOT / "book" / "results").glob("*/*.ipynb"))
    assert pages
    assert [page for page in pages if re.search(r"<[\w.]+ (object )?at 0x", page.read_text())] == []


def test_committed_results_are_of_full_size():
    records = sorted((ROOT / "book" / "results").glob("*/*.json"))
    assert len(records) > len(registry.load().architectures)
    assert [path.parent.name for path in records if json.loads(path.read_bytes())["quick"]] == []
