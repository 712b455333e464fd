"""Nouns of WordNet: the sense of a word that is of a given kind, its synonyms, and its hypernyms."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Synset:
    """One sense: the words that share it, its definition, and the addresses of what it is a kind of."""

    lemmas: tuple[str, ...]
    gloss: str
    above: tuple[str, ...]


class Nouns:
    """The nouns in the folder of WordNet's files (`index.noun`, `data.noun`; format: wndb(5WN))."""

    def __init__(self, folder: Path) -> None:
        """Read both files; lines that begin with a space are the licence."""
        self.senses: dict[str, list[str]] = {}
        self.synsets: dict[str, Synset] = {}
        for line in (folder / "index.noun").read_text().splitlines():
            if not line.startswith(" "):
                fields = line.split()
                self.senses[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
        for line in (folder / "data.noun").read_text().splitlines():
            if not line.startswith(" "):
                facts, _, gloss = line.partition("|")
                fields = facts.split()
                count = int(fields[3], 16)
                pointers = fields[5 + 2 * count :]
                self.synsets[fields[0]] = Synset(
                    tuple(fields[4 + 2 * i].replace("_", " ") for i in range(count)),
                    gloss.strip(),
                    tuple(pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i][0] == "@"),
                )

    def find(self, words: list[str], anchors: list[str]) -> str | None:
        """Address of the first sense of the first of the words that is a kind of one of the anchors.

        Returns None when no word has such a sense.
        """
        for word in words:
            for address in self.senses.get(word.lower(), []):
                if any(
                    anchor in self.synsets[above].lemmas
                    for above in self.chain(address)
                    for anchor in anchors
                ):
                    return address
        return None

    def chain(self, address: str) -> Iterator[str]:
        """Addresses of the hypernyms of a sense, nearest first, without the sense itself."""
        level, seen = [address], {address}
        while level:
            level = [above for at in level for above in self.synsets[at].above if above not in seen]
            seen.update(level)
            yield from level
