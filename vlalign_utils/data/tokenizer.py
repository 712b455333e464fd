"""The world's tokenizer: content words are two pieces, shared between words; grammar words are one.

Each content word is cut where its first piece is the longest beginning, and if possible its second piece
an ending too, that another word shares ("tri|angle", "tri|angolo"; "cro|ss", "cro|ce"), so that no first
piece tells which word follows.
"""

import string
from collections import Counter
from collections.abc import Mapping
from functools import partial

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlalign_utils.data.language import vocabulary

SPECIAL = {
    "pad": "<pad>",
    "bos": "<s>",
    "eos": "</s>",
    "image": "<image>",
    "ask": "<ask>",
    "answer": "<answer>",
}
SPACE = "\u2581"  # stands for the space before a word
RARE = -20.0  # log probability of single characters: what the world does not say is spelled out

# One user turn reads: <s><ask><image>what colour is the circle?<answer>
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<ask>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% elif message['role'] == 'assistant' %}{{ '<answer>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ '</s>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<answer>' }}{% endif %}"
)


def split_words(words: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Cut each word in two, sharing pieces with the other words as far as possible."""
    first = Counter(word[:i] for word in words for i in range(1, len(word)))
    second = Counter(word[i:] for word in words for i in range(1, len(word)))

    def sharing(word: str, i: int) -> tuple[int, int]:
        return (first[word[:i]] > 1) + (second[word[i:]] > 1), i if first[word[:i]] > 1 else -i

    cuts = {word: max(range(1, len(word)), key=partial(sharing, word)) for word in words}
    return {word: (word[:i], word[i:]) for word, i in cuts.items()}


def build_tokenizer(
    tokens: Mapping[str, str] | None = None, image_text: str = SPECIAL["image"]
) -> PreTrainedTokenizerFast:
    """Build the tokenizer from the world's vocabulary; deterministic.

    `tokens` are a family's special tokens by the attribute that its processor asks the tokenizer for; one
    of them is `image_token`. `image_text` is what the chat template writes for an image.
    """
    extra = {"image_token": SPECIAL["image"]} if tokens is None else dict(tokens)
    content, grammar = vocabulary()
    pieces = [part for begin, end in split_words(content).values() for part in (SPACE + begin, end)]
    pieces += [SPACE + word for word in grammar] + ["?", ",", "."]
    letters = [SPACE, *string.ascii_lowercase, *string.digits, "'", "-", ":"]
    known = dict.fromkeys(pieces, -1.0)
    scores = known | {letter: RARE for letter in letters if letter not in known}
    before, after = ("pad", "bos", "eos"), ("ask", "answer")
    special = list(
        dict.fromkeys([*(SPECIAL[n] for n in before), *extra.values(), *(SPECIAL[n] for n in after)])
    )
    backend = Tokenizer(models.Unigram([*((name, 0.0) for name in special), *scores.items()], unk_id=0))
    backend.normalizer = normalizers.Lowercase()
    # `prepend_scheme="always"`: a word reads the same at the start of a turn and inside a sentence.
    space = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.pre_tokenizer = pre_tokenizers.Sequence([space, pre_tokenizers.Punctuation()])
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL["pad"],
        bos_token=SPECIAL["bos"],
        eos_token=SPECIAL["eos"],
        additional_special_tokens=special[len(before) :],
        extra_special_tokens=extra,
        padding_side="left",
        chat_template=CHAT_TEMPLATE.replace(SPECIAL["image"], image_text),
        clean_up_tokenization_spaces=False,
    )
