"""The book: generated contents and pages, complete results only, and a clean build of a small book."""

import base64
import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from threading import Thread

import nbformat
import pandas as pd
import pytest
import small_notebooks
import tiny_models
import tiny_parts
import torch
from docutils.utils.math import MathError
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from vlalign_utils.book import serve, toc
from vlalign_utils.book.build import BookError, build, check_complete, check_toc
from vlalign_utils.book.pages import (
    card,
    chapter,
    claims_page,
    depth_figure,
    downloads,
    front,
    headline,
    laboratory,
    power,
    scale,
    suites,
    things_sources,
    verdicts,
)
from vlalign_utils.book.pages.markdown import interval, number, table, text
from vlalign_utils.book.pages.mathml import to_mathml
from vlalign_utils.data.worlds import WORLDS
from vlalign_utils.evidence import claim_rules, claims, plots, results
from vlalign_utils.evidence.intervals import Interval
from vlalign_utils.evidence.results import Estimate, Results, ResultsError, Table
from vlalign_utils.loading import assembled
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.normalise import digest, normalise
from vlalign_utils.pipeline.registry import COMPARISON

# What a name from outside may try to be: HTML, a link, a role, a substitution, a formula, a cell.
HOSTILE = (
    "<script>planted()</script> <img src=x onerror=planted()> [go](javascript:planted) <javascript:planted> "
    "`x` {raw}`<b>` {{ planted }} $$ x $$ | ::: ``` <!-- planted -->"
)
REGISTRY = """
notebooks: [03_geometry]
comparison: 90_comparison
architectures:
  tiny:
    {title: "Tiny <b>* one HOSTILE", description: "HOSTILE $5.", model: zoo/tiny, stages: [base, tuned]}
  hub:
    title: Hub
    description: From a hub.
    model: someone/else
    revision: abc
    stages: [tuned]
    notebooks: [03_geometry, 09_where]
""".replace("HOSTILE", HOSTILE)
SCORE = {"value": 0.9, "low": 0.88, "high": 0.92, "n": 800, "chance": 0.125, "informative": True}
STAGE = {"steps": 10, "examples": 1200, "batch_size": 120, "seconds": 90, "parameters_trained": 1234567}
RECORD = {
    "chain": "tiny",
    "seed": 0,
    "versions": {"torch": "2.13.0", HOSTILE: HOSTILE},
    "device": "1 x CPU, 1 threads",
    "data": {"pictures_of_scenes": 24000, HOSTILE: 3},
    "stages": {HOSTILE: {**STAGE, "curve": [[5, 1.0]]}, "base": {**STAGE, "curve": [[5, 1.0], [10, 0.5]]}},
    "evaluation": {"base": {"digits": SCORE, "text": {**SCORE, "value": 0.8, "low": 0.78}}},
}
LOADED_FROM_ELSEWHERE = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//')


def picture(shows: str) -> str:
    """One pixel that says what it shows, as notebooks hold it."""
    words, file = PngInfo(), BytesIO()
    words.add_itxt(plots.DESCRIPTION, shows)
    Image.new("L", (1, 1)).save(file, "PNG", pnginfo=words)
    return base64.b64encode(file.getvalue()).decode()


PICTURE = picture("Overlap rises & falls.")


class Planted(HTMLParser):
    """Elements and attributes that only HOSTILE brings, were it markup, and the page's text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""
        self.script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.script = tag == "script"
        held = {name: value or "" for name, value in attrs}
        planted = [name for name, value in held.items() if name.startswith("on") and "planted" in value]
        planted += [value for value in held.values() if value.strip().lower().startswith("javascript:pl")]
        if planted or tag == "b" or (tag == "img" and held.get("src") == "x"):
            self.found.append(f"<{tag} {held}>")

    def handle_endtag(self, tag: str) -> None:
        self.script = False

    def handle_comment(self, data: str) -> None:
        if "planted" in data:
            self.found.append(data)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.script and "planted" in data:
            self.found.append(data)


INSIDE, OUTSIDE, ACROSS = (Interval(value, value - 0.01, value + 0.01, 400) for value in (0.3, -0.3, 0.0))
JUDGED = {  # by the chapter on geometry, of the first architecture
    "entry": dict(zip(claim_rules.claim("entry").conditions, (INSIDE, INSIDE), strict=True)),
    "strengthen": dict(
        zip(claim_rules.claim("strengthen").conditions, (INSIDE, OUTSIDE, INSIDE), strict=True)
    ),
}


def publish(root: Path, arch: str, notebook: str, quick: bool = False) -> None:
    """An executed notebook with a formula, pictures and a table, and its results, as a run leaves them."""
    figure = nbformat.v4.new_output("display_data", {"image/png": PICTURE})
    html = nbformat.v4.new_output("display_data", {"text/html": "<table><tr><th>a</th></tr></table>"})
    cells = [
        nbformat.v4.new_markdown_cell(f"# On {arch}\n\nOverlap {{cite}}`doimo2020nucleation`:\n\n$$x_i^2$$"),
        nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
        *(nbformat.v4.new_markdown_cell(f"## {claim_rules.claim(name).heading}") for name in JUDGED),
        nbformat.v4.new_markdown_cell("## Curves"),
        nbformat.v4.new_code_cell("1", outputs=[figure, html]),
        nbformat.v4.new_code_cell("2", outputs=[figure], metadata={"mystnb": {"image": {"alt": "Overlap."}}}),
        nbformat.v4.new_markdown_cell("N = 4."),
    ]
    executed = normalise(nbformat.v4.new_notebook(cells=cells), {})
    page = root / "book" / "results" / arch / f"{notebook}.ipynb"
    page.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(executed, page)
    value = Estimate(value=-0.25, low=-0.3, high=-0.2, n=400)
    columns = ["curve", "depth", "value", "low", "high"]
    results = Results(
        notebook=notebook,
        arch=arch,
        notebook_digest=digest(executed),
        quick=quick,
        values={"a_b": value} | ({HOSTILE: value} if arch == "hub" else {}),
        findings=[f"On {arch} <i>a</i> is 0.3 [0.2, 0.4].", "No difference is shown."],
        claims={name: claims.judge(claim_rules.claim(name), found) for name, found in JUDGED.items()}
        if arch == "tiny"
        else {},
        tables={
            view.table: Table(
                columns=columns,
                rows=[
                    ["measured", 0.0, 0.1, 0.0, 0.2],
                    ["measured", 1.0, 0.3, 0.2, 0.4],
                    ["control", 0.0, 0.05, 0.0, 0.1],
                    ["control", 1.0, 0.06, 0.0, 0.1],
                ],
            )
            for view in depth_figure.VIEWS
        }
        | ({HOSTILE: Table(columns=[HOSTILE], rows=[[HOSTILE]])} if arch == "hub" else {}),
    )
    page.with_suffix(".json").write_text(results.sealed().dumps())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small repository: the real prose and settings, two architectures, complete results."""
    root = tmp_path_factory.mktemp("book")
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("results"))
    shutil.copy(ROOT / "_config.yml", root)
    (root / "architectures.yml").write_text(REGISTRY)
    entries = registry.load(root)
    (root / "_toc.yml").write_text(toc.render(entries))
    for arch in entries.architectures:
        publish(root, arch, "03_geometry")
    publish(root, "hub", "09_where")
    publish(root, COMPARISON, "90_comparison")
    (root / "zoo" / "tiny").mkdir(parents=True)
    (root / "zoo" / "tiny" / "record.json").write_text(json.dumps(RECORD))
    for stage in ("base", "tuned"):
        sized(root / "zoo" / "tiny" / stage, 1_250_000)
    (root / "notebooks").mkdir()
    for name, first in (("03_geometry", "arch"), ("09_where", "arch"), ("90_comparison", "archs")):
        parameters = f'{first} = ""\nout_dir = ""\nquick = False'
        nbformat.write(small_notebooks.notebook(parameters, "1"), root / "notebooks" / f"{name}.ipynb")
    chapter.note_outdated([("hub", "03_geometry")], root / toc.GENERATED)
    (root / things_sources.FILE).parent.mkdir()
    shutil.copy(ROOT / things_sources.FILE, root / things_sources.FILE)
    return root


def sized(folder: Path, weights: int, layers: int = 8, tokens: int = 215) -> None:
    """The files of a checkpoint, as far as its scale is read from them."""
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "num_hidden_layers": layers, "vocab_size": tokens}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(weights - 50), "b": torch.zeros(5, 10)}, folder / "model.safetensors")


@pytest.fixture
def root(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns("_build"))


@pytest.fixture(scope="module")
def pages(source: Path) -> Iterator[Path]:
    yield build(source)
    shutil.rmtree(source / "_build")


def read(pages: Path, name: str) -> str:
    return (pages / name).read_text()


class TestToc:
    def test_committed_equals_generated(self) -> None:
        assert (ROOT / "_toc.yml").read_text() == toc.render(registry.load())

    def test_one_part_per_model_and_one_for_all_laboratory_models(self, source: Path) -> None:
        shown = toc.render(registry.load(source))
        part = "caption: Hub\n  chapters:\n  - file: _generated/hub\n  - file: book/results/hub/03_geometry\n"
        small = """- caption: Laboratory models
  chapters:
  - file: book/laboratory
  - file: _generated/tiny
    sections:
    - file: book/results/tiny/03_geometry
"""
        assert shown.index(part) < shown.index("caption: How it works") < shown.index(small)
        assert "caption: Tiny" not in shown
        assert "- file: _generated/claims\n  - file: book/which_layers\n  - file: book/abilities\n" in shown
        assert "book/results/comparison/90_comparison" in shown

    def test_without_models_of_a_kind_their_first_page_is_left_out(self, source: Path) -> None:
        entries = registry.load(source)
        for name, page in (("tiny", toc.ABILITIES), ("hub", toc.LABORATORY)):
            alone = entries.model_copy(update={"architectures": {name: entries.architecture(name)}})
            assert page not in toc.render(alone)

    def test_a_stale_one_stops_the_build(self, root: Path) -> None:
        (root / "_toc.yml").write_text("format: jb-book\n")
        with pytest.raises(BookError, match=r"python -m vlalign_utils toc"):
            check_toc(registry.load(root), root)


class TestComplete:
    def test_passes(self, root: Path) -> None:
        check_complete(registry.load(root), root)

    @pytest.mark.parametrize("suffix", [".ipynb", ".json"])
    def test_names_what_is_missing_and_the_command(self, root: Path, suffix: str) -> None:
        (root / "book" / "results" / "hub" / f"03_geometry{suffix}").unlink()
        with pytest.raises(
            BookError, match=r"hub/03_geometry.ipynb is missing.*make run ARCH=hub NB=03_geometry"
        ):
            check_complete(registry.load(root), root)

    def test_refuses_a_notebook_that_its_results_do_not_describe(self, root: Path) -> None:
        page = root / "book" / "results" / COMPARISON / "90_comparison.ipynb"
        page.write_text(page.read_text().replace("N = 4", "N = 5"))
        with pytest.raises(BookError, match="make run ARCH=comparison NB=90_comparison"):
            check_complete(registry.load(root), root)

    def test_refuses_a_quick_run(self, root: Path) -> None:
        publish(root, "tiny", "03_geometry", quick=True)
        with pytest.raises(BookError, match="quick size"):
            check_complete(registry.load(root), root)

    def test_refuses_a_chapter_without_findings(self, root: Path) -> None:
        path = root / "book" / "results" / "tiny" / "03_geometry.json"
        path.write_text(results.read(path).model_copy(update={"findings": []}).sealed().dumps())
        with pytest.raises(BookError, match=r"states no findings.*make run ARCH=tiny NB=03_geometry"):
            check_complete(registry.load(root), root)


class TestScale:
    """Sizes come from the files; what is not here, or was not trained here, is said."""

    def test_one_model(self, source: Path) -> None:
        tiny, hub = registry.load(source).architectures.values()
        assert scale.of(tiny, source) == scale.Scale(1_250_000, 8, 215, False)  # no record of its tuned stage
        assert scale.about_one(tiny, source) == (
            f"Measured on {tiny.title}: 1.2 million weights, 8 decoder layers, a vocabulary of 215 tokens; "
            "not trained from scratch by this project."
        )
        joined = scale.Scale(1_250_000, 8, 215, joined=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scale, "of", lambda arch, root: joined)
            assert scale.about_one(tiny, source).endswith(
                "; pretrained parts that this project joined and tuned."
            )
        assert scale.about_one(hub, source) == (
            "Measured on Hub: someone/else, a model that this project did not train."
        )

    def test_all_models(self, source: Path) -> None:
        assert scale.about_all(registry.load(source), source) == (
            "Measured on 2 models: 1.2 million weights, 8 decoder layers, a vocabulary of 215 tokens. "
            "The size of Hub is not on record here. What is found in models as small as these need not "
            "hold in models of billions of weights."
        )

    def test_models_trained_here_from_several_seeds(self, tmp_path: Path) -> None:
        entries = """
notebooks: [03_geometry]
comparison: 90_comparison
architectures:
  one: {title: One, description: D, model: zoo/one, stages: [base, tuned]}
  two: {title: Two, description: D, model: zoo/two, stages: [base, tuned]}
  one-1: {title: Again, description: D, model: zoo/one-1, stages: [base, tuned], repeats: one}
"""
        (tmp_path / "architectures.yml").write_text(entries)
        sizes = {"one": (900_000, 8, 215), "two": (1_810_000, 16, 1218), "one-1": (900_000, 8, 215)}
        for name, size in sizes.items():
            sized(tmp_path / "zoo" / name / "tuned", *size)
            stages = {stage: RECORD["stages"]["base"] for stage in ("vision", "base", "tuned")}
            record = {**RECORD, "stages": stages}
            (tmp_path / "zoo" / name / "record.json").write_text(json.dumps(record))
        assert scale.about_all(registry.load(tmp_path), tmp_path).startswith(
            "Measured on 2 models (One from 2 seeds), trained from scratch by this project: 900.0 "
            "thousand to 1.8 million weights, 8 to 16 decoder layers, a vocabulary of 215 to 1,218 tokens."
        )
        (tmp_path / "zoo" / "two" / "record.json").unlink()
        told = scale.about_all(registry.load(tmp_path), tmp_path)
        assert "2 models (One from 2 seeds), 1 of them trained from scratch by this project:" in told

    @pytest.mark.usefixtures("tiny_parts")
    def test_a_model_kept_as_what_was_trained(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(assembled, "part_folder", lambda name: pytest.fail(f"{name} was read"))
        tiny = registry.load(source).architecture("tiny").model_copy(update={"model": "zoo/made"})
        for stage in tiny.stages:
            tiny_parts.write(tmp_path / "zoo" / "made" / stage, seed=0)
        weights = sum(parameter.numel() for parameter in tiny_models.build("llava")[0].model.parameters())
        assert scale.of(tiny, tmp_path) == scale.Scale(weights, 4, 64, joined=True)

    def test_this_book_names_the_scale_of_its_models(self) -> None:
        told = scale.about_all(registry.load(), ROOT)
        assert re.search(
            r"6 models \(.*LLaVA style from 3 seeds\), 5 of them trained from scratch by this project: 1\.",
            told,
        )
        assert "million weights" in told
        assert "a vocabulary of 215 to 49,152 tokens" in told


HIGHER, LOWER, NEAR = INSIDE, OUTSIDE, ACROSS


class TestHeadline:
    """Three sentences in correct English whatever came out."""

    ENTRIES = registry.Registry.model_validate(
        {
            "notebooks": ["03_geometry"],
            "comparison": "90_comparison",
            "architectures": {
                name: {
                    "name": name,
                    "title": name.upper(),
                    "description": "D",
                    "model": "m",
                    "notebooks": ["03_geometry"],
                    "repeats": "a" if name == "a-1" else None,
                }
                for name in ("a", "b", "c", "a-1")
            },
        }
    )

    @staticmethod
    def judged(name: str, *intervals: Interval | None, seeds: int = 9) -> claim_rules.Verdict:
        claim = claim_rules.claim(name)
        return claims.judge(claim, dict(zip(claim.conditions, intervals, strict=True)), seeds)

    def found(self, **found: dict[str, claim_rules.Verdict | None]) -> dict[str, verdicts.Verdicts]:
        none = dict.fromkeys(self.ENTRIES.architectures)
        return {name: {**none, **found.get(name.replace("-", "_"), {})} for name in claim_rules.load()}

    def follows(self, **found: dict[str, claim_rules.Verdict | None]) -> dict[str, str]:
        return headline.follows(claim_rules.load(), self.found(**found), self.ENTRIES)

    def test_nothing_was_tested(self) -> None:
        assert headline.tally(self.found(), "a") == headline.NOTHING
        assert self.follows() == {}

    def test_all_alike_in_all(self) -> None:
        low = self.judged("compression-risk", LOWER, HIGHER, HIGHER)
        told = self.follows(compression_risk={"a": low, "b": low, "c": low, "a-1": low})
        assert told == {
            "compress": "“Taking submodules out of the middle layers harms answers about images in a way "
            "that text benchmarks hide” is contradicted in all 3 models; vision loss minus text loss, middle "
            "minus elsewhere is −0.300 [−0.310, −0.290], N = 400, in A, and from −0.300 to −0.300 over all 3."
        }

    @pytest.mark.parametrize(
        ("outcomes", "says"),
        [
            ((LOWER, LOWER, HIGHER), "is contradicted in 2 of 3 models and supported in 1; vision loss"),
            (
                (LOWER, NEAR, HIGHER),
                "is supported in 1 of 3 models, contradicted in 1 and undecided in 1; vision loss",
            ),
            (
                (NEAR, NEAR, NEAR),
                "is undecided in all 3 models; vision loss minus text loss, middle minus elsewhere is 0.0",
            ),
            ((HIGHER, HIGHER, None), "is supported in both models that it was tested on; vision loss"),
            ((NEAR, None, None), "is undecided in the one model that it was tested on; vision loss"),
        ],
    )
    def test_any_mixture(self, outcomes: tuple[Interval | None, ...], says: str) -> None:
        found = {
            name: None if interval is None else self.judged("compression-risk", interval, HIGHER, HIGHER)
            for name, interval in zip("abc", outcomes, strict=True)
        }
        (told,) = self.follows(compression_risk=found).values()
        assert says in told
        assert told.endswith(".")

    def test_few_seeds_and_what_could_not_be_measured(self) -> None:
        conditions = claim_rules.claim("band-tuning").conditions
        few = self.judged("band-tuning", *[HIGHER] * len(conditions), seeds=1)
        (told,) = self.follows(band_tuning={"a": few, "b": few}).values()
        assert "in both models that it was tested on; too few seeds (1 of 5); gain, band over" in told
        lost = self.judged("band-tuning", *[None] * len(conditions))
        assert self.follows(band_tuning={"a": lost})["train"].endswith("could not be measured.")

    def test_one_model_is_counted_by_verdict(self) -> None:
        near = self.judged("entry", Interval(0.2, 0.1, 0.3, 9), HIGHER)
        none = claims.judge(claim_rules.claim("bypass"), {}, not_applicable="no phase")
        work = self.judged("critical-work", LOWER, HIGHER, HIGHER)
        view = self.judged("critical-view", LOWER, HIGHER, HIGHER)
        found = self.found(
            entry={"a": near},
            bypass={"a": none},
            critical_work={"a": work},
            critical_view={"a": view, "a-1": near},
        )
        told = headline.tally(found, "a")
        assert told.startswith(
            "Of 11 claims 2 are decided, 1 is undecided (entry), 1 is not applicable (bypass) and 7 are not "
            "tested (semantic-core, "
        )
        (said,) = headline.decided(claim_rules.load(), found, "a", self.ENTRIES)
        loss = "(loss, inside minus before: −0.300 [−0.310, −0.290], N = 400"
        assert said == (
            "Contradicted: “Image tokens need the work of the layers of the abstraction phase more than that "
            f"of the layers before it, and of those behind it” {loss}) and “Words need to see the image in "
            "the layers of the abstraction phase more than in those before it, and in those behind it” "
            f"{loss}; so in 1 of 2 seeds)."
        )
        assert told.endswith(".")

    def test_the_first_model_is_no_laboratory_model_where_there_is_one(self) -> None:
        assert headline.first(self.ENTRIES).name == "a"
        zoo = {"model": "zoo/x", "world": "drawn"}
        lab = self.ENTRIES.architectures["a"].model_copy(update=zoo)
        others = {**self.ENTRIES.architectures, "a": lab}
        assert headline.first(self.ENTRIES.model_copy(update={"architectures": others})).name == "b"


class TestChapter:
    def test_title_findings_and_scale_open_the_page(self, source: Path) -> None:
        page = "book/results/tiny/03_geometry"
        notebook = nbformat.read(source / f"{page}.ipynb", as_version=4)
        chapter.compose(notebook, page, registry.load(source), source)
        lines = notebook.cells[0].source.splitlines()
        assert lines[0] == f"# On tiny: {text(registry.load(source).architecture('tiny').title)}"
        assert "- On tiny &lt;i&gt;a&lt;/i&gt; is 0.3 \\[0.2, 0.4\\]." in lines
        assert any(line.startswith("Measured on Tiny") for line in lines)
        assert lines.index("::::") < next(i for i, line in enumerate(lines) if line.startswith("Overlap"))
        folded = ["hide-input" in cell.metadata.tags for cell in notebook.cells if cell.cell_type == "code"]
        assert folded == [False, True, True]

    def test_what_would_change_the_verdicts_closes_the_page(self, source: Path) -> None:
        last = {}
        for arch in ("tiny", "hub"):
            page = f"book/results/{arch}/03_geometry"
            notebook = nbformat.read(source / f"{page}.ipynb", as_version=4)
            chapter.compose(notebook, page, registry.load(source), source)
            last[arch] = notebook.cells[-1].source
        assert last["tiny"].startswith("## What would change the verdicts")
        assert "*entry*, supported" in last["tiny"]
        assert "*strengthen*, contradicted" in last["tiny"]
        assert last["hub"] == "N = 4."  # it judges no claim

    def test_a_chapter_of_an_earlier_state_says_so_and_what_to_run(self, source: Path) -> None:
        openings = {}
        for arch in ("tiny", "hub"):
            page = f"book/results/{arch}/03_geometry"
            notebook = nbformat.read(source / f"{page}.ipynb", as_version=4)
            chapter.compose(notebook, page, registry.load(source), source)
            openings[arch] = notebook.cells[0].source
        assert "earlier state" not in openings["tiny"]
        heading, _, rest = openings["hub"].partition("\n\n")
        assert heading == "# On hub: Hub"
        assert rest.startswith(":::{admonition} Of an earlier state\n:class: warning\n")
        assert rest.index("`make book ARCHS=hub`") < rest.index("What was found")

    def test_a_link_to_a_chapter_that_a_model_has_not_leads_to_that_of_another(self, source: Path) -> None:
        entries = registry.load(source)
        said = "See [](03_geometry.ipynb#nulls) and [more](https://a.example/03_geometry.ipynb)."
        linked = {}
        for arch, has in (("tiny", ["01_model"]), ("hub", ["03_geometry"])):
            entries.architectures[arch] = entries.architecture(arch).model_copy(update={"notebooks": has})
        for arch in ("tiny", "hub"):
            notebook = nbformat.read(source / f"book/results/{arch}/03_geometry.ipynb", as_version=4)
            notebook.cells.append(nbformat.v4.new_markdown_cell(said))
            chapter.compose(notebook, f"book/results/{arch}/03_geometry", entries, source)
            (linked[arch],) = (c.source for c in notebook.cells if c.source.startswith("See"))
        assert linked == {"tiny": said.replace("(03_", "(../hub/03_"), "hub": said}

    def test_the_comparison_names_no_model(self, source: Path) -> None:
        page = f"book/results/{COMPARISON}/90_comparison"
        notebook = nbformat.read(source / f"{page}.ipynb", as_version=4)
        chapter.compose(notebook, page, registry.load(source), source)
        assert notebook.cells[0].source.startswith("# On comparison\n")
        assert "Measured on 2 models" in notebook.cells[0].source


class TestMarkdown:
    @settings(deadline=None)
    @given(st.text(st.characters(min_codepoint=32, max_codepoint=0x24F)))
    def test_text_is_only_text(self, raw: str) -> None:
        shown = MarkdownIt("gfm-like", {"linkify": False}).render(f"x {text(raw)} x")
        plain = re.sub("<[^>]*>", "", shown)
        for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
            plain = plain.replace(entity, character)
        assert plain.split() == f"x {raw} x".split()
        assert re.findall("<[^>]*>", shown) == ["<p>", "</p>"]

    def test_numbers(self) -> None:
        assert number(1234567) == "1\u202f234\u202f567"
        assert number(-0.5) == "−0.5"
        assert interval(Estimate(value=-0.001, low=-0.011, high=0.0, n=4)) == "0.00\xa0\\[−0.01,\xa00.00\\]"
        estimate = Estimate(value=-0.25, low=-0.3, high=-0.2, n=4)
        assert interval(estimate) == "−0.25\xa0\\[−0.30,\xa0−0.20\\]"

    def test_table(self) -> None:
        assert table(["a", "b"], "lr", [["1", "2"]]) == "| a | b |\n| :--- | ---: |\n| 1 | 2 |\n"


class TestFormulas:
    @pytest.mark.parametrize(
        "latex",
        [
            r"\frac{1}{N}\sum_{i=1}^{N} \frac{|\mathcal{N}_k(x_i) \cap \mathcal{N}_k(y_i)|}{k}",
            r"\Delta(A \to B) = \frac{2}{N}\,\mathbb{E}\left[ r^B \mid r^A = 1 \right]",
            r"\hat{p} \pm 1.96\sqrt{\hat p(1-\hat p)/n}",
            r"a &= b \\ c &= d",
            r"\arg\max_\ell \operatorname{acc}_\ell, \quad \ell \in [a, b)",
        ],
    )
    def test_become_mathml(self, latex: str) -> None:
        shown = to_mathml(latex, block=True)
        assert shown.startswith("<math")
        assert 'display="block"' in shown

    def test_unknown_command(self) -> None:
        with pytest.raises(MathError, match="nosuch"):
            to_mathml(r"\nosuch{x}", block=False)


@pytest.mark.slow
class TestSuites:
    def test_every_suite_has_items_with_pictures_and_every_chain_its_scores(
        self, source: Path, tmp_path: Path
    ) -> None:
        suites.write(tmp_path, source)
        page = (tmp_path / "suites.md").read_text()
        for world in WORLDS.values():
            assert f"## {suites.WORDS[world.name][0]}\n" in page
            for name in world.suites:
                own = suites.label(world, name)
                assert page.count(f"({own})=") == page.count(f"(#{own})") == 1
                assert (tmp_path / f"{own}.png").is_file() == (name != "text")
        asked = "which word is written on a sign | the model's own \\(greedy\\) answer, in its own words"
        assert f"| [reading](#suite-things-reading) | TextVQA | {asked} | " in page
        assert "| 0.05 | yes |" in page  # one of twenty names
        assert "| digits | 800 | 0.12 | 0.90\xa0\\[0.88,\xa00.92\\] |" in page
        assert "| tiny | 1.5 | 1.5 | 1 x CPU, 1 threads |" in page

    def test_a_suite_at_chance_is_marked(self, source: Path, tmp_path: Path) -> None:
        record = json.loads(json.dumps(RECORD))
        record["evaluation"]["base"]["digits"]["informative"] = False
        (tmp_path / "zoo" / "tiny").mkdir(parents=True)
        (tmp_path / "zoo" / "tiny" / "record.json").write_text(json.dumps(record))
        suites.write(tmp_path, tmp_path)
        assert "0.92\\] (at chance) |" in (tmp_path / "suites.md").read_text()


def test_the_sources_of_the_things_are_shown_as_they_stand_beside_them(tmp_path: Path) -> None:
    things_sources.write(tmp_path, ROOT)
    page = (tmp_path / "things_sources.md").read_text()
    assert page == (ROOT / "zoo" / "things" / "ATTRIBUTION.md").read_text()
    assert toc.PAGES.index("things_sources") == toc.PAGES.index("suites") + 1
    assert all(
        licence in page for licence in ("Apache-2.0", "MIT", "CC-BY-4.0", "Unicode-3.0", "WordNet-3.0")
    )


class TestCard:
    def test_numbers_come_from_the_record(self, source: Path, tmp_path: Path) -> None:
        card.write(registry.load(source).architecture("tiny"), tmp_path, source)
        page = (tmp_path / "tiny.md").read_text()
        assert "| digits | 0.90\xa0\\[0.88,\xa00.92\\] | 800 | 0.12 | 0.60 | yes |" in page
        assert "| 0.90 | **no** |" in page
        assert "1\u202f234\u202f567" in page
        assert "# Tiny &lt;b&gt;\\* one " in page
        assert (tmp_path / "tiny-training.svg").is_file()

    def test_a_model_from_elsewhere_has_no_record(self, source: Path, tmp_path: Path) -> None:
        card.write(registry.load(source).architecture("hub"), tmp_path, source)
        assert "not trained by this project" in (tmp_path / "hub.md").read_text()

    def test_a_malformed_record_names_the_field(self, tmp_path: Path) -> None:
        path = tmp_path / "record.json"
        path.write_text(json.dumps({**RECORD, "seed": "zero"}))
        with pytest.raises(ResultsError, match=r"record.json.*seed"):
            card.read_record(path)


def test_laboratory_models_are_listed_with_their_sizes(source: Path, tmp_path: Path) -> None:
    laboratory.write(registry.load(source), tmp_path, source)
    lines = (tmp_path / laboratory.PAGE).read_text().splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| [Tiny &lt;b&gt;\\* one")
    assert lines[2].endswith(
        "](/_generated/tiny.md) | " + lines[2].split(" | ")[1] + " | 1 seed | 1\u202f250\u202f000 | 8 | 215 |"
    )


@pytest.mark.slow
def test_front_page_comes_from_the_results(source: Path, tmp_path: Path) -> None:
    front.write(registry.load(source), tmp_path, source)
    figure = (tmp_path / "depth_figure.md").read_text()
    assert "read off image tokens, Hub: highest, 0.30, at depth 1.00, its control 0.06; like texts" in figure
    assert "attended by the text: even attention" in figure
    told = (tmp_path / "headline.md").read_text()
    assert "**In Hub:**" in told
    assert "- On hub &lt;i&gt;a&lt;/i&gt; is 0.3 \\[0.2, 0.4\\]." in told
    assert told.count("\n- ") == 3
    assert "Intervals of claims are at 99.55 \\%, all others at 95 \\%." in told
    assert (tmp_path / "follows.md").read_text() == ""  # of these claims no model was tested on any
    assert "Measured on 2 models" in told
    summary = (tmp_path / "summary.md").read_text()
    assert "| a\\_b | −0.25\xa0\\[−0.30,\xa0−0.20\\] |  | 400 |" in summary
    assert "[](/book/results/hub/03_geometry.ipynb)" in summary


class TestVerdicts:
    def test_every_cell_is_a_word_and_what_decided_it(self, source: Path, tmp_path: Path) -> None:
        verdicts.write(registry.load(source), tmp_path, source)
        shown = (tmp_path / "verdicts.md").read_text()
        assert (
            "Of 22 cells: 1 supported, 1 contradicted, 0 equivalent, 0 undecided, 0 not applicable, " in shown
        )
        entry, strengthen = (
            row for row in shown.splitlines() if "#claim-entry" in row or "-strengthen" in row
        )
        chapter = "/book/results/tiny/03_geometry.ipynb"
        word = f"[[supported]({chapter}#where-images-enter)]{{.verdict .supported}}"
        match = "depth that entering images match best"
        assert f"| {word} {match}: 0.300 \\[0.290,\xa00.310\\] | [not run]{{.verdict .not-run}} |" in entry
        width = "plateau width, tuned minus aligned: −0.300 \\[−0.310,\xa0−0.290\\]"
        assert f"]{{.verdict .contradicted}} {width} | [not run]" in strengthen
        table = pd.read_csv(tmp_path / "data" / "claims.csv").set_index(["claim", "architecture"])
        assert len(table) == 22
        assert table.loc[("strengthen", "tiny"), "verdict"] == "contradicted"
        assert table.loc[("strengthen", "tiny"), "decided_by"] == "plateau width, tuned minus aligned"
        assert table.loc[("strengthen", "tiny"), ["value", "low", "high", "n"]].tolist() == [
            -0.3,
            -0.31,
            -0.29,
            400,
        ]
        assert table.loc[("strengthen", "hub"), "verdict"] == "not run"

    def test_too_few_seeds_and_what_could_not_be_measured_are_said(self, root: Path, tmp_path: Path) -> None:
        (root / "architectures.yml").write_text(REGISTRY.replace("[03_geometry]", "[03_geometry, 05_tuning]"))
        publish(root, "tiny", "05_tuning")
        publish(root, "hub", "05_tuning")
        path = root / "book" / "results" / "tiny" / "05_tuning.json"
        results = Results.model_validate_json(path.read_text())
        frozen = claim_rules.claim("frozen-core")
        results.claims.update(
            {"frozen-core": claims.judge(frozen, dict.fromkeys(frozen.conditions, INSIDE), 1)}
        )
        path.write_text(results.sealed().dumps())
        verdicts.write(registry.load(root), tmp_path, root)
        assert "]{.verdict .undecided} too few seeds \\(1 of 5\\) |" in (tmp_path / "verdicts.md").read_text()
        tuning = claim_rules.claim("band-tuning")
        unmeasured = {**dict.fromkeys(tuning.conditions, INSIDE), "score, full minus aligned": None}
        results.claims.update({"band-tuning": claims.judge(tuning, unmeasured, 5)})
        path.write_text(results.sealed().dumps())
        verdicts.write(registry.load(root), tmp_path / "again", root)
        shown = (tmp_path / "again" / "verdicts.md").read_text()
        assert "]{.verdict .undecided} score, full minus aligned: not measurable |" in shown

    def test_seeds_of_a_recipe_count_once(self, root: Path, tmp_path: Path) -> None:
        path = root / "architectures.yml"
        again = "{title: Again, description: d., model: zoo/tiny, stages: [base, tuned], repeats: tiny}"
        path.write_text(path.read_text() + f"  tiny-1: {again}\n")
        shutil.copytree(root / "book" / "results" / "tiny", root / "book" / "results" / "tiny-1")
        verdicts.write(registry.load(root), tmp_path, root)
        shown = (tmp_path / "verdicts.md").read_text()
        assert "Of 22 cells: 1 supported, 1 contradicted" in shown
        assert "0.300 \\[0.290,\xa00.310\\]; so in 2 of 2 seeds |" in shown
        assert "Again" not in shown

    def test_without_any_verdict_all_are_not_run(self, root: Path, tmp_path: Path) -> None:
        for path in (root / "book" / "results").rglob("*.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "claims": {}, "content_digest": ""}))
        verdicts.write(registry.load(root), tmp_path, root)
        claims_page.write(registry.load(root), tmp_path, root)
        shown = (tmp_path / "verdicts.md").read_text()
        assert (
            "0 supported, 0 contradicted, 0 equivalent, 0 undecided, 0 not applicable, 22 not run." in shown
        )
        assert shown.count("[not run]") == 22
        assert (tmp_path / "data" / "claims-conditions.csv").read_text().count("\n") == 1

    def test_a_verdict_by_another_rule_is_refused(self, root: Path, tmp_path: Path) -> None:
        path = root / "book" / "claims.yml"
        path.write_text(path.read_text().replace("above: 0.15", "above: 0.35"))
        claim_rules.load.cache_clear()
        with pytest.raises(
            ResultsError, match=r"'entry' was judged by another .*; run: make run ARCH=tiny NB=03_"
        ):
            verdicts.write(registry.load(root), tmp_path, root)

    def test_the_power_that_was_stated_before_is_shown(self, root: Path, tmp_path: Path) -> None:
        row = {"claim": "bypass", "condition": "a", "sd": 0.4, "pilot_n": 50, "n": 200, "smallest": 0.05}
        row |= {"power": 0.2, "power_twice": 0.9, "equivalence": 0.01}
        about = {"date": "2026-01-02", "rules": "0123456789", "architecture": "hub", "conditions": [row]}
        for stated in (root / "book").glob(power.FILES):
            stated.unlink()
        (root / "book" / "power.json").write_text(json.dumps(about))
        again = {"claim": "entry", "condition": "b", "error": 0.01, "n": 3000, "smallest": 0.05}
        again |= {"power": 0.7, "power_twice": 1.0}
        about |= {"from": "from an earlier study", "conditions": [again]}
        (root / "book" / "power_b.json").write_text(json.dumps(about))
        claims_page.write(registry.load(root), tmp_path, root)
        told = power.about("bypass", {"hub": "Hub"}, root)
        assert told.startswith(
            "Stated on 2026-01-02, after the rules (commit 0123456), on Hub, from other items"
        )
        assert "with N = 200 an effect of 0.05 is found with a probability of 0.20, one of 0.1 with" in told
        page = (tmp_path / "claims.md").read_text()
        assert page.count("Power\n: ") == 2
        assert text(told) in page
        other = power.about("entry", {}, root)
        assert "on hub, from an earlier study: b, standard error 0.01 expected: with N = 3000" in other
        assert "equivalent" not in other  # no smallest effect of interest
        assert power.about("strengthen", {}, root) == ""

    def test_the_page_gives_each_claim_in_full(self, source: Path, tmp_path: Path) -> None:
        claims_page.write(registry.load(source), tmp_path, source)
        page = (tmp_path / "claims.md").read_text()
        for name, claim in claim_rules.load().items():
            assert f"(claim-{name})=" in page
            assert claim.formula in page
            assert all(
                text(part) in page for part in (claim.says, claim.statistic, claim.against, *claim.conditions)
            )
        assert "99.55 %: 95 % corrected for 11 claims" in page
        assert "| **−0.300 \\[−0.310,\xa0−0.290\\], outside, N\xa0=\xa0400** |" in page
        assert "guard: plateau height above random connector, tuned; *above 0* | 0.300" in page
        assert "Hub\\: the chapter 03\\_geometry gives no verdict." in page
        assert "Hub\\: the chapter 05\\_tuning was not run on this model." in page
        table = pd.read_csv(tmp_path / "data" / "claims-conditions.csv")
        assert table.lies.tolist() == ["inside"] * 3 + ["outside", "inside"]


class TestDownloads:
    def test_every_table_is_a_file(self, source: Path, tmp_path: Path) -> None:
        downloads.write(registry.load(source), tmp_path, source)
        page = (tmp_path / "data.md").read_text()
        for arch in ("tiny", "hub"):
            assert (
                f"{{download}}`profile, aligned </_generated/data/{arch}-03_geometry-profile-aligned.csv>`"
                in page
            )
        table = pd.read_csv(tmp_path / "data" / "tiny-03_geometry-profile-aligned.csv")
        assert table.columns.tolist() == ["curve", "depth", "value", "low", "high"]
        assert table.value.tolist() == [0.1, 0.3, 0.05, 0.06]
        values = pd.read_csv(tmp_path / "data" / "comparison-90_comparison-values.csv")
        assert values.drop(columns="chance").values.tolist() == [["a_b", -0.25, -0.3, -0.2, 400]]

    def test_two_tables_are_never_one_file(self, tmp_path: Path) -> None:
        link = downloads.save(pd.DataFrame({"a": [1]}), tmp_path, "loss, all", "loss | <all>")
        assert link == "{download}`loss all </_generated/data/loss-all.csv>`"
        with pytest.raises(
            ResultsError, match=r"two tables would be written to loss-all\.csv; rename 'loss all'"
        ):
            downloads.save(pd.DataFrame({"a": [2]}), tmp_path, "loss all", "loss all")


@pytest.mark.slow
@pytest.mark.xdist_group("build")  # the pages are built once, in one process
class TestBuild:
    def test_every_page_is_there(self, pages: Path) -> None:
        names = [
            "book/index",
            "_generated/tiny",
            "book/results/tiny/03_geometry",
            "book/bibliography",
            "search",
        ]
        assert all((pages / f"{name}.html").is_file() for name in names)
        assert 'href="book/index.html"' in read(pages, "index.html")

    def test_the_readme_shows_the_picture_of_the_front_page(self, source: Path, pages: Path) -> None:
        assert "(book/results/depth.svg)" in (ROOT / "README.md").read_text()
        shown = (source / "book" / "results" / "depth.svg").read_bytes()
        assert shown in {path.read_bytes() for path in (pages / "_images").glob("depth*.svg")}

    def test_verdicts_lead_to_their_figures_and_tables_can_be_downloaded(self, pages: Path) -> None:
        page = read(pages, "book/index.html")
        cell = re.search(r'<span class="verdict supported"><a [^>]*href="([^"#]+)#([^"]+)"', page)
        assert cell is not None
        assert f'id="{cell[2]}"' in (pages / "book" / cell[1]).read_text()
        assert '<span class="verdict contradicted">' in page
        found = re.search(r'<a class="reference download internal"[^>]*href="([^"]+/claims.csv)"', page)
        assert found is not None
        assert (pages / "book" / found[1]).read_text().startswith("claim,architecture,verdict,")

    def test_formulas_are_mathml(self, pages: Path) -> None:
        page = read(pages, "book/results/tiny/03_geometry.html")
        assert "<msubsup>" in page
        assert "mathjax" not in page.lower()

    def test_figures_have_text(self, pages: Path) -> None:
        page = read(pages, "book/results/tiny/03_geometry.html")
        alternatives = re.findall(r'<img alt="([^"]*)"', page)
        assert alternatives == ["Figure 1, Curves. Overlap rises &amp; falls.", "Overlap."]
        captions = re.findall(r'<figcaption>.*?<span class="caption-text">(.*?)</span>', page, re.DOTALL)
        assert captions == ["Figure 1. Curves", "Figure 2. Curves"]

    def test_titles_name_the_model_and_findings_come_first(self, pages: Path) -> None:
        page = read(pages, "book/results/tiny/03_geometry.html")
        assert "<title>On tiny: Tiny &lt;b&gt;* one &lt;script&gt;" in page
        assert page.index("On tiny &lt;i&gt;a&lt;/i&gt; is 0.3 [0.2, 0.4].") < page.index("Overlap")
        assert "On tiny: Tiny &lt;b&gt;* one" in read(pages, "book/index.html")  # the sidebar
        for name in (
            "book/index",
            "book/methods",
            "_generated/claims",
            "book/results/comparison/90_comparison",
        ):
            assert "Measured on 2 models: 1.2 million weights" in read(pages, f"{name}.html"), name

    def test_code_is_folded_but_for_the_parameters(self, pages: Path) -> None:
        article = read(pages, "book/results/tiny/03_geometry.html").partition("<article")[2]
        assert article.count("<summary") == 2  # of three code cells

    def test_what_opens_a_list_of_the_sidebar_has_a_name(self, pages: Path) -> None:
        page = read(pages, "book/index.html")
        assert 'card</a><details><summary aria-label="Pages below Tiny &lt;b&gt;* one' in page
        assert "<details><summary>" not in page.partition("<article")[0]

    def test_nothing_is_loaded_from_elsewhere(self, pages: Path) -> None:
        for page in pages.rglob("*.html"):
            assert not LOADED_FROM_ELSEWHERE.search(page.read_text()), page

    def test_names_are_escaped(self, pages: Path) -> None:
        assert "Tiny &lt;b&gt;* one" in read(pages, "_generated/tiny.html")

    def test_nothing_that_is_named_is_markup(self, pages: Path) -> None:
        """Registry, record, values and tables that try to be HTML, in every page of the book."""
        shown = 0
        for page in pages.rglob("*.html"):
            reader = Planted()
            reader.feed(page.read_text())
            assert not reader.found, (page.name, reader.found)
            shown += reader.text.count("planted()")
        assert shown > 20
        search = (pages / "_static" / "searchtools.js").read_text()
        assert "linkEl.innerHTML" not in search

    def test_a_warning_is_an_error_and_leaves_no_book(
        self, root: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (root / "_build" / "html").mkdir(parents=True)
        (root / "book" / "glossary.md").write_text("# Glossary\n\n[](nowhere.md) and $\\nosuch$\n")
        with pytest.raises(BookError, match="above"):
            build(root)
        warnings = capfd.readouterr().err
        assert "nowhere.md" in warnings
        assert "nosuch" in warnings
        assert not (root / "_build").exists()


class TestServe:
    def test_needs_a_book(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="make book"):
            serve.server(tmp_path)

    def test_loopback_and_the_next_free_port(self, tmp_path: Path) -> None:
        (tmp_path / "index.html").write_text("the book")
        with serve.server(tmp_path) as first, serve.server(tmp_path, first.server_port) as second:
            assert first.server_address[0] == "127.0.0.1"
            assert second.server_port > first.server_port
            Thread(target=second.handle_request, daemon=True).start()
            with urllib.request.urlopen(f"http://127.0.0.1:{second.server_port}/") as answer:
                assert answer.read() == b"the book"
