from collections import Counter

from transformers import AutoTokenizer

from vlalign_utils.data.language import caption, vocabulary
from vlalign_utils.data.scenes import scenes
from vlalign_utils.data.tokenizer import SPECIAL, build_tokenizer

TOKENIZER = build_tokenizer()


def test_content_words_are_two_pieces_shared_between_words_and_grammar_words_are_one():
    content, grammar = vocabulary()
    pieces = {word: TOKENIZER.tokenize(word) for word in content}
    assert {len(p) for p in pieces.values()} == {2}
    count = Counter(piece for p in pieces.values() for piece in p)
    count.update(TOKENIZER.tokenize(" ".join(grammar)))
    sharing = sum(max(count[piece] for piece in p) > 1 for p in pieces.values())
    assert sharing > 0.85 * len(content)
    assert len({tuple(p) for p in pieces.values()}) == len(content)
    assert all(len(TOKENIZER.tokenize(word)) == 1 for word in grammar)


def test_text_comes_back_and_case_does_not_matter():
    for scene in scenes(20, 0, "test"):
        text = caption(scene, "it")
        assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text
    assert (
        TOKENIZER("What colour is the RED thing?")["input_ids"]
        == TOKENIZER("what colour is the red thing?")["input_ids"]
    )


def test_words_the_world_does_not_know_are_spelled_out():
    assert TOKENIZER.decode(TOKENIZER("what is a zebra-fish?")["input_ids"]) == "what is a zebra-fish?"


def test_building_is_deterministic_and_special_tokens_come_first():
    assert build_tokenizer().get_vocab() == TOKENIZER.get_vocab()
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL.values())) == list(range(6))


def test_chat_template_writes_turns_with_and_without_a_picture():
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is there?"}]}
    text = TOKENIZER.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    assert text == "<s><ask><image>what is there?<answer>"
    answered = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "anna"}]
    assert TOKENIZER.apply_chat_template(answered, tokenize=False) == "<s><ask>who?<answer>anna</s>"


def test_it_is_saved_as_a_normal_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a red thing")["input_ids"] == TOKENIZER("a red thing")["input_ids"]
    assert again.padding_side == "left"
    assert again.image_token_id == TOKENIZER.image_token_id
