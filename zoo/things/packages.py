"""Packages that the world of things is made from: pinned by version and SHA-256, fetched by npm and apt."""

import hashlib
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A package: `file` is what its client saves it as; `use` and the rest are for the attribution."""

    name: str
    version: str
    file: str
    sha256: str
    author: str
    licence: str
    source: str
    use: str

    def unpacked(self, folder: Path) -> Path:
        """Folder with the package's files, fetched and unpacked below `folder` if they are not there.

        Raises ValueError when the file is not the one that was pinned.
        """
        target, archive = folder / self.file.partition(".tgz")[0].partition(".deb")[0], folder / self.file
        if not archive.exists():
            subprocess.run(self._client(), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"{archive} has SHA-256 {found}, expected {self.sha256}: delete it and try again"
            )
        if not target.exists():
            target.mkdir()
            if self.file.endswith(".deb"):
                subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(target, filter="data")
        return target / "usr/share/wordnet" if self.file.endswith(".deb") else target / "package"

    def _client(self) -> list[str]:
        if self.file.endswith(".deb"):
            return ["apt-get", "download", f"{self.name}={self.version}"]
        return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]


NOTO = Package(
    name="@iconify-json/noto",
    version="1.2.9",
    file="iconify-json-noto-1.2.9.tgz",
    sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    author="Google Inc (Noto Emoji)",
    licence="Apache-2.0",
    source="https://github.com/googlefonts/noto-emoji",
    use="drawings of the style `google`",
)
FLUENT_3D = Package(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    file="lobehub-fluent-emoji-3d-1.1.0.tgz",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    author="Microsoft Corporation (Fluent Emoji, 3D), packaged by LobeHub",
    licence="MIT",
    source="https://github.com/microsoft/fluentui-emoji",
    use="drawings of the style `fluent3d`",
)
FLUENT_FLAT = Package(
    name="@iconify-json/fluent-emoji-flat",
    version="1.2.6",
    file="iconify-json-fluent-emoji-flat-1.2.6.tgz",
    sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    author="Microsoft Corporation (Fluent Emoji, flat)",
    licence="MIT",
    source="https://github.com/microsoft/fluentui-emoji",
    use="drawings of the style `fluentflat`",
)
TWEMOJI = Package(
    name="@iconify-json/twemoji",
    version="1.2.5",
    file="iconify-json-twemoji-1.2.5.tgz",
    sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    author="Twitter, Inc and other contributors (Twemoji)",
    licence="CC-BY-4.0",
    source="https://github.com/jdecked/twemoji",
    use="drawings of the style `twitter`",
)
CLDR = Package(
    name="cldr-annotations-full",
    version="48.2.0",
    file="cldr-annotations-full-48.2.0.tgz",
    sha256="28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    author="Unicode, Inc. (Common Locale Data Repository)",
    licence="Unicode-3.0",
    source="https://github.com/unicode-org/cldr-json",
    use="names in five languages, keywords",
)
WORDNET = Package(
    name="wordnet-base",
    version="1:3.0-37",
    file="wordnet-base_1%3a3.0-37_all.deb",
    sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    author="Princeton University (WordNet 3.0)",
    licence="WordNet-3.0",
    source="https://wordnet.princeton.edu",
    use="hypernyms and synonyms",
)
PACKAGES = (NOTO, FLUENT_3D, FLUENT_FLAT, TWEMOJI, CLDR, WORDNET)
