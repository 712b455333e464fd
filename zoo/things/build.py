"""Build the world of things from pinned packages: `things.json`, a sheet for each style, `ATTRIBUTION.md`.

Needs npm, apt-get and dpkg-deb, and the Python packages resvg-py, inflect, pyyaml and pillow. From the root:

    PYTHONPATH=. python zoo/things/build.py FOLDER    # FOLDER keeps the fetched packages
"""

import hashlib
import json
import sys
from pathlib import Path

from drawings import CELL, COLUMNS, QUALITY, cell, raster_style, sheet, vector_style, webp
from packages import CLDR, FLUENT_3D, FLUENT_FLAT, NOTO, PACKAGES, TWEMOJI, WORDNET
from words import LANGUAGES, Words

HERE = Path(__file__).parent
STYLES = {
    "google": (vector_style, NOTO),
    "fluent3d": (raster_style, FLUENT_3D),
    "fluentflat": (vector_style, FLUENT_FLAT),
    "twitter": (vector_style, TWEMOJI),
}


def build(folder: Path) -> None:
    """Write every file of the world beside this script."""
    folder.mkdir(parents=True, exist_ok=True)
    words = Words(CLDR.unpacked(folder), WORDNET.unpacked(folder))
    things = [words.entry(choice) for choice in words.choices]
    styles = {}
    for style, (reader, package) in STYLES.items():
        draw = reader(package.unpacked(folder))
        encoded = webp(sheet([cell(draw(thing["emoji"])) for thing in things]))
        (HERE / f"{style}.webp").write_bytes(encoded)
        styles[style] = {"sha256": hashlib.sha256(encoded).hexdigest()}
        print(f"{style}: {len(encoded):,} bytes")
    write_words(things, words.phrases(things), styles)
    (HERE / "ATTRIBUTION.md").write_text(attribution(len(things)))


def write_words(
    things: list[dict[str, object]], phrases: dict[str, str], styles: dict[str, dict[str, str]]
) -> None:
    """Write `things.json`, one thing a line."""
    head = {"cell": CELL, "columns": COLUMNS, "languages": LANGUAGES, "styles": styles, "phrases": phrases}
    lines = ",\n".join(json.dumps(thing, ensure_ascii=False) for thing in things)
    text = json.dumps(head, ensure_ascii=False)[:-1] + ',\n"things": [\n' + lines + "\n]}\n"
    (HERE / "things.json").write_text(text)
    print(f'vlalign_utils/data/things/table.py: SHA256 = "{hashlib.sha256(text.encode()).hexdigest()}"')


def attribution(count: int) -> str:
    """Text of `ATTRIBUTION.md`."""
    text = f"""# Sources of the world of real things

{count} things, each drawn in {len(STYLES)} styles. `build.py` makes all files from these packages; nothing
is fetched when they are used. Share-alike and GPL drawings were left out.

| package | version | author | licence | used for | changes made |
|---|---|---|---|---|---|
"""
    for p in PACKAGES:
        changes = (
            f"drawings chosen, cropped, scaled to {CELL} pixels, put on one sheet, WebP of quality {QUALITY}"
            if "drawings" in p.use
            else "entries chosen, filtered and shortened"
        )
        author = f"[{p.author}]({p.source})"
        text += f"| `{p.name}` | {p.version} | {author} | {p.licence} | {p.use} | {changes} |\n"
    text += "\nSHA-256 of the packages:\n\n"
    text += "".join(f"- `{p.file}`: `{p.sha256}`\n" for p in PACKAGES)
    return text + "\n" + (HERE / "licences.md").read_text()


if __name__ == "__main__":
    build(Path(sys.argv[1]))
