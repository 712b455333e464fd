"""What a card of a chain from parts says of its data, use and limits, with the numbers of the data."""

import re

from vlalign_utils.data.things.questions import LANGUAGE_NAMES
from vlalign_utils.data.things.sheets import STYLES
from vlalign_utils.data.things.splits import (
    HELD_OUT_SHARE,
    HELD_OUT_STYLE,
    TRAINED_STYLES,
    held_out_things,
    kind_asked,
    trained_things,
)
from vlalign_utils.data.things.table import kinds, things
from vlalign_utils.evidence.findings import joined

USE = """For research on where image and text meet inside a vision-language model: every stage of one
model, in which layers can be recorded, patched and frozen, and which can be trained again on a CPU. Each
stage is a plain transformers model once it is assembled: `load_vlm("zoo/{chain}", "tuned")`. It is not
made for photographs, nor for decisions about people."""
EXAMPLE = """```python
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor
from vlalign_utils import load_suite
from vlalign_utils.loading.assembled import plain_folder

folder = plain_folder(Path("zoo/{chain}/tuned"))  # assembled once, in the cache
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
item = load_suite("naming", 1, world="things")[0]  # a held-out image, and a question about it
said = [{{"type": "image"}}, {{"type": "text", "text": item.prompt}}]
text = processor.apply_chat_template([{{"role": "user", "content": said}}], add_generation_prompt=True)
inputs = processor(images=item.image, text=text, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
print(item.prompt, processor.decode(answer, skip_special_tokens=True), f"({{item.answer}})")
```"""
LIMITS = """- Since its parts were joined it has seen drawings of {things} things in {styles} styles, and no
  photograph.
- An image is {side} pixels wide and high to it: what takes a few of them is lost.
- Answers are a few words, nearly all of them English. Questions in other words than those of training
  were not tried.
- The language model is small and knows little: a wrong answer may be for lack of knowledge and not of
  sight.
- Nothing was done against biases of its parts, or against harmful answers."""
DATA = """The world of real things of this repository: {things} things of {kinds} kinds, each drawn in
{styles} styles, one or several in a scene, on plain and patterned backgrounds. Besides, signs with a word,
bars of months, and real handwritten digits. Questions and captions are in English; a thing's name is also
asked for in {languages}. `zoo/things/ATTRIBUTION.md` has the sources and licences of drawings and names;
the digits come with scikit-learn.

No stage is trained on {held_out} of the things, on the style `{style}`, on {share:.0%} of the pairs of
things and of the numbers of a thing, or on the handwriting that is evaluated. Training asks for the kind
of {asked} of the {trained} trained things, and never for that of the others."""


def about_data() -> str:
    """What the chain is trained on, and what is held out."""
    said = DATA.format(
        things=len(things()),
        kinds=len(kinds()),
        styles=len(STYLES),
        languages=joined(list(LANGUAGE_NAMES.values())),
        held_out=len(held_out_things()),
        style=HELD_OUT_STYLE,
        share=HELD_OUT_SHARE,
        asked=sum(kind_asked(thing) for thing in things()),
        trained=len(trained_things()),
    )
    return _unwrapped(said)


def limits(side: int) -> str:
    """What to expect no more of; `side` is that of an image in pixels."""
    return _unwrapped(LIMITS.format(things=len(trained_things()), styles=len(TRAINED_STYLES), side=side))


def use(chain: str) -> str:
    """What a chain is for, and an example with plain transformers."""
    return _unwrapped(USE.format(chain=chain)) + "\n\n" + EXAMPLE.format(chain=chain)


def _unwrapped(said: str) -> str:
    """Paragraphs and items of lists, each on a line of its own."""
    return re.sub(r"(?<!\n)\n(?![\n-]) *", " ", said)
