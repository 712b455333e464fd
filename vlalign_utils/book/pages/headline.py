"""The front page's sentences: what was found in its first model, and what follows, from verdicts."""

from collections import Counter

from vlalign_utils.book.pages.verdicts import WORDS, Verdicts, seeds
from vlalign_utils.evidence.claim_rules import Claim, Condition, Verdict, Word
from vlalign_utils.evidence.findings import counted, joined, sentence, shown
from vlalign_utils.evidence.intervals import Interval
from vlalign_utils.pipeline.registry import Architecture, Registry

NOTHING = "None of the claims has been tested on this model yet."
DECIDED: dict[Word, str] = {
    "supported": "Supported",
    "contradicted": "Contradicted",
    "equivalent": "Shown to differ by less than the smallest effect of interest",
}
FOLLOWS = {"train": "band-tuning", "adapt": "adapter-depth", "compress": "compression-risk"}


def first(entries: Registry) -> Architecture:
    """The model that the front page speaks of: the first that is no laboratory model, else the first."""
    archs = [entries.architecture(name) for name in entries.originals()]
    return next((arch for arch in archs if not arch.laboratory), archs[0])


def decided(known: dict[str, Claim], found: dict[str, Verdicts], arch: str, entries: Registry) -> list[str]:
    """What one model's verdicts say in words: a sentence for each word that decides, with what decided it.

    Where a claim was tested on other seeds of the model, it says in how many the verdict is the same.
    """
    told = []
    for word, opening in DECIDED.items():
        judged = {name: v for name in found if (v := found[name].get(arch)) is not None and v.word == word}
        if judged:
            said = [_said(known[name], v, seeds(found[name], arch, entries)) for name, v in judged.items()]
            told.append(f"{opening}: {joined(said)}.")
    return told


def _said(claim: Claim, verdict: Verdict, seeds: str) -> str:
    said = f"“{claim.says.rstrip('.')}”"
    measured = verdict.conditions[verdict.decided_by].interval
    if measured is None:
        return said
    return f"{said} ({verdict.decided_by}: {shown(Interval(**measured.model_dump()))}{seeds})"


def tally(found: dict[str, Verdicts], arch: str) -> str:
    """A sentence on one model's verdicts: how many are decided, and which claims are not, and why."""
    by_word: dict[str, list[str]] = {}
    for name, by_arch in found.items():
        verdict = by_arch.get(arch)
        by_word.setdefault("not tested" if verdict is None else verdict.word, []).append(name)
    if list(by_word) == ["not tested"]:
        return NOTHING
    sure = sum(len(by_word.get(word, [])) for word in DECIDED)
    parts = [f"{sure} {'is' if sure == 1 else 'are'} decided"]
    parts += [
        f"{len(by_word[word])} {'is' if len(by_word[word]) == 1 else 'are'} {word} ({joined(by_word[word])})"
        for word in (*WORDS, "not tested")
        if word in by_word and word not in DECIDED
    ]
    return sentence(f"of {counted(len(found), 'claim')} {joined(parts)}")


def follows(known: dict[str, Claim], found: dict[str, Verdicts], entries: Registry) -> dict[str, str]:
    """For whoever trains, adapts or compresses: the claim that is about it, over all models tested.

    Seeds of one recipe count once, as the recipe's first entry. What no model was tested on is left out.
    """
    titles = {name: entries.architecture(name).title for name in entries.originals()}
    judged = {
        name: {titles[arch]: v for arch in titles if (v := by_arch.get(arch)) is not None}
        for name, by_arch in found.items()
    }
    return {
        task: about(known[name], judged[name], len(titles)) for task, name in FOLLOWS.items() if judged[name]
    }


def about(claim: Claim, judged: dict[str, Verdict], models: int) -> str:
    """One claim over all models, by title: in how many it got which verdict, and the effect that decided it.

    `models` counts those that were not tested, too. Raises ValueError when none was tested.
    """
    if not judged:
        raise ValueError(f"the claim '{claim.id}' was tested on no model")
    counts: Counter[str] = Counter(verdict.word for verdict in judged.values())
    words: list[str] = sorted(counts, key=lambda word: (-counts[word], WORDS.index(word)))
    said = f"“{claim.says.rstrip('.')}” is {_in_models(words, counts, len(judged), models)}"
    return sentence(f"{said}; {_effect(claim, judged, words[0])}")


def _in_models(words: list[str], counts: Counter[str], tested: int, models: int) -> str:
    where = "" if tested == models else " that it was tested on"
    if len(words) > 1:
        first = f"{words[0]} in {counts[words[0]]} of {tested} models{where}"
        return joined([first, *(f"{word} in {counts[word]}" for word in words[1:])])
    if tested == 1:
        return f"{words[0]} in the one model{where}"
    return f"{words[0]} in {_all(tested)} models{where}"


def _effect(claim: Claim, judged: dict[str, Verdict], word: str) -> str:
    """What the claim is about, its first condition, in one model and over all.

    Where something else decides most verdicts of this word, that is named before: a guard, or too few seeds.
    """
    deciding = Counter(verdict.decided_by for verdict in judged.values() if verdict.word == word)
    reason, _ = deciding.most_common(1)[0]
    what = next(iter(claim.conditions))
    known = claim.conditions.get(reason)
    before = "" if known is not None and not known.guard else f"{_failed(reason, known)}; "
    measured = {
        title: Interval(**one.model_dump())
        for title, verdict in judged.items()
        if (one := verdict.conditions[what].interval) is not None
    }
    if not measured:
        return f"{before}{what} could not be measured"
    example = next(
        (t for t in measured if judged[t].word == word and judged[t].decided_by == reason),
        next(iter(measured)),
    )
    told = f"{before}{what} is {shown(measured[example])}, in {example}"
    if len(measured) == 1:
        return told
    values = [interval.value for interval in measured.values()]
    span = f"{min(values):.3f} to {max(values):.3f}".replace("-", "−")
    where = _all(len(measured)) if len(measured) == len(judged) else f"the {len(measured)} measured"
    return f"{told}, and from {span} over {where}"


def _failed(reason: str, guard: Condition | None) -> str:
    return reason if guard is None else f"{reason} is not clearly {guard.region()}"


def _all(models: int) -> str:
    return "both" if models == 2 else f"all {models}"
