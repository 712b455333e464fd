"""Every page of the built book in headless Chromium, and the check itself on a page with planted faults."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vlalign_utils.book.build import build
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import staleness

pytestmark = [pytest.mark.html, pytest.mark.timeout(1800)]

CHECK = ROOT / "tests" / "html"
SHOTS = ROOT / ".cache" / "screenshots"
FAULTS = """
<a href="nowhere.html">a page that is not there</a> <a href="#nowhere">an anchor that is not there</a>
<img src="http://elsewhere.invalid/picture.png" alt="A picture from another host">
<img src="../_static/favicon.svg"> <img src="../_static/favicon.svg" alt="favicon.svg">
<img src="../_static/gone.png" alt="A picture that is not there">
<p style="color: #333">Not legible on a dark page.</p> <p style="color: #ccc">Not legible on a light page.</p>
<div style="width: 3000px">Wider than a phone.</div>
<script>console.error("a planted complaint"); throw new Error("a planted error");</script>
"""


def check(folder: Path, *more: Path) -> dict[str, Any]:
    """The report on a folder of pages; fails with what to do when the browser is not set up."""
    node = shutil.which("node")
    if node is None or not (CHECK / "node_modules" / "playwright-core").is_dir():
        pytest.fail("the browser check is not set up; run: tests/html/setup.sh")
    command = [node, str(CHECK / "check.mjs"), str(folder), *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the check itself failed; run tests/html/setup.sh\n{done.stderr}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def html() -> Path:
    """The built book, built here unless it matches its sources."""
    return ROOT / "_build" / "html" if staleness.pages_current() else build()


def test_every_page_is_sound(html: Path) -> None:
    shutil.rmtree(SHOTS, ignore_errors=True)
    report = check(html, SHOTS)
    pages = report.pop("pages")
    assert pages > 0
    assert {name: found for name, found in report.items() if found} == {}
    for kind in ("desktop", "dark", "mobile"):
        assert len(list(SHOTS.glob(f"*.{kind}.png"))) == pages - 1  # the redirect cannot be looked at


def test_planted_faults_are_found(html: Path, tmp_path: Path) -> None:
    site = shutil.copytree(html, tmp_path / "site", ignore=shutil.ignore_patterns("*.html", "_images"))
    page = (html / "book" / "glossary.html").read_text()
    (site / "book" / "glossary.html").write_text(page.replace("</article>", FAULTS + "</article>"))
    report = check(site)
    found = json.dumps(report)
    assert report["pages"] == 1
    assert {"/book/nowhere.html", "/book/glossary.html#nowhere"} <= {e["link"] for e in report["brokenLinks"]}
    assert report["externalRequests"] == [
        {"page": "book/glossary.html", "url": "http://elsewhere.invalid/picture.png"}
    ]
    assert any(entry["url"].endswith("/_static/gone.png") for entry in report["failedRequests"])
    assert "a planted complaint" in str(report["consoleErrors"])
    assert "a planted error" in str(report["pageErrors"])
    assert report["overflow"], found
    assert len(report["imageText"]) == 2
    violated = {(entry["mode"], entry["rule"]) for entry in report["accessibility"]}
    assert ("desktop light", "image-alt") in violated
    assert {("desktop light", "color-contrast"), ("desktop dark", "color-contrast")} <= violated


def test_check_needs_pages(tmp_path: Path) -> None:
    command = ["node", str(CHECK / "check.mjs"), str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not a folder of built pages" in done.stderr
