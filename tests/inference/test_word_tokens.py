import pytest
import torch
from tiny_models import tiny_processor

from vlalign_utils.data.language import LANGUAGES
from vlalign_utils.data.tokenizer import build_tokenizer
from vlalign_utils.data.worlds import WORLDS
from vlalign_utils.inference.token_groups import read_tokens
from vlalign_utils.inference.word_tokens import last_tokens, spoken, word_list


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("concept", ["form", "count", "word"])
def test_a_word_ends_where_the_tokenizer_s_own_offsets_say(concept, language):
    tokenizer = build_tokenizer()
    for item in WORLDS["drawn"].concept_items(concept, 20, 0):
        caption = item.caption[language]
        chat = f"<s><ask>{caption}<answer>"
        read = tokenizer(chat, add_special_tokens=False, return_offsets_mapping=True)
        at = last_tokens(tokenizer, read["input_ids"], caption)
        assert [chat[: read["offset_mapping"][i][1]].split()[-1].rpartition(">")[2] for i in at] == word_list(
            caption
        )


def test_words_are_found_behind_padding():
    tokenizer = tiny_processor().tokenizer
    tokenizer.padding_side = "left"
    texts = ["red circle", "the blue square is green"]
    inputs = tokenizer([f"<s>{text} answer :" for text in texts], padding=True, return_tensors="pt")
    mask = spoken(tokenizer, texts)(read_tokens(inputs, None, rows=[0, 1]))
    said = [
        tokenizer.convert_ids_to_tokens(row[own]) for row, own in zip(inputs["input_ids"], mask, strict=True)
    ]
    assert said == [text.split() for text in texts]
    swapped = spoken(tokenizer, texts[::-1])(read_tokens(inputs, None, rows=[1, 0]))
    assert torch.equal(mask, swapped)


def test_a_text_that_the_tokens_do_not_hold_is_refused():
    tokenizer = tiny_processor().tokenizer
    ids = tokenizer("<s>red circle answer :", add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match="do not hold the text 'red square'"):
        last_tokens(tokenizer, ids, "red square")
