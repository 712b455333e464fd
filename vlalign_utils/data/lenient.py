"""Lenient scoring of answers in a model's own words, by the rules of public benchmarks.

- Case, punctuation, articles and number words do not count: the answer normalisation of VQA (Antol et al.
  2015, arXiv 1505.00468, `vqaEval.py`), which LLaVA-1.5 is scored by too.
- Yes or no is what the answer begins with, and anything else is wrong: the rule of MME (Fu et al. 2023,
  arXiv 2306.13394, `calculation.py`). By that of POPE, all that has no "no" in it is a yes: a model that says
  just anything would be given half of the points.
- Synonyms of the same concept count, as several annotated answers do in VQA.
- A longer answer is right when the right choice is the only one that it names: choices are looked for in the
  text as in MMMU (Yue et al. 2023, arXiv 2311.16502, `parse_multi_choice_response`), but where it names none
  or several, nothing is guessed. What the question names may be repeated ("A cat is left of the dog.").
"""

import re
from collections.abc import Collection, Iterable

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
MULTIPLES = frozenset(("dozen", "dozens", "hundred", "thousand", "million"))
LEADS = re.compile(
    r"(?:answer is |it s |it is |that is |this is |these are |those are |they are |there is |there are "
    r"|image shows )+"
)
NEGATIONS = frozenset(("no", "not", "cannot", "neither", "nor", "never", "without"))
CONTRACTED = re.compile(r"n['’]t\b")  # "isn't", "don't", "can't"
YES, NO = "yes", "no"


def normalised(text: str) -> str:
    """Text in lower case without punctuation and articles, with numbers as digits.

    >>> normalised("The answer is: Two X-rays."), normalised("A T-shirt!")
    ('answer is 2 x rays', 't shirt')
    """
    words = re.findall(r"\w+", text.lower())
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ARTICLES)


def is_right(
    said: str, answer: str, accepted: Collection[str] = (), choices: Collection[str] = (), prompt: str = ""
) -> bool:
    """Whether a text in a model's own words gives the answer, by the rules of this module.

    Args:
        said: the model's text.
        answer: the right answer.
        accepted: further answers that are right.
        choices: answers that could have been given, the right one among them or not.
        prompt: the question; wrong choices in it do not count when they are repeated.

    >>> is_right("It's an owl.", "Owl"), is_right("Yes, there are two dogs.", "Yes", choices=("Yes", "No"))
    (True, True)
    >>> is_right("An owl and a rat", "Owl", choices=("Owl", "Rat")), is_right("Cab", "Taxi", ("cab",))
    (False, True)
    """
    own = normalised(said)
    right = {normalised(text) for text in (answer, *accepted)}
    wrong = {normalised(text) for text in choices} - right
    if {YES, NO} == right | wrong:
        return own.partition(" ")[0] in right
    lead = LEADS.match(own)
    bare = own[lead.end() :] if lead else own
    if bare in right or own in right:
        return True
    if CONTRACTED.search(said.lower()) or (NEGATIONS - right) & set(own.split()):
        return False
    if all(text.isdecimal() for text in right):  # no number that is no choice may stand beside the right one
        wrong |= {word for word in own.split() if word.isdecimal() or word in MULTIPLES} - right
    asked = normalised(prompt)
    if not named(asked, right):
        wrong -= named(asked, wrong)
    found = named(own, right | wrong)
    return bool(found) and found <= right


def named(text: str, names: Iterable[str]) -> set[str]:
    """Which names occur in a text, both normalised, as whole words; one within a longer one does not count.

    >>> sorted(named("blue ice cube and rat", ["ice", "ice cube", "rat", "cat"]))
    ['ice cube', 'rat']
    """
    words = text.split()
    known: dict[str, list[list[str]]] = {}
    for name in names:
        parts = name.split()
        if parts:
            known.setdefault(parts[0], []).append(parts)
    found, at = set(), 0
    while at < len(words):
        fitting = [p for p in known.get(words[at], ()) if words[at : at + len(p)] == p]
        longest = max(fitting, key=len, default=None)
        if longest:
            found.add(" ".join(longest))
        at += len(longest) if longest else 1
    return found
