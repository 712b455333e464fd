import pytest
import torch
from PIL import Image
from tiny_models import build, tiny_processor
from torch import Tensor

from vlalign_utils import VLM
from vlalign_utils.inference.answers import answer_mask
from vlalign_utils.inference.token_groups import GROUPS, Random, Tokens, draw, masks, named, read_tokens


def batch(rows: list[str], numbers: list[int] | None = None) -> Tokens:
    """A batch drawn with letters: . padding, t text, i image, a answer."""

    def where(letters: str) -> Tensor:
        return torch.tensor([[letter in letters for letter in row] for row in rows])

    numbers = list(range(len(rows))) if numbers is None else numbers
    return Tokens(where("tia").long(), where("tia"), where("i"), where("a"), numbers)


def drawn(mask: Tensor) -> list[str]:
    return ["".join("x" if there else "-" for there in row) for row in mask.tolist()]


@pytest.mark.parametrize(
    ("group", "expected"),
    {
        "image": ["---xxx-----", "-x-xx------"],
        "last_image": ["-----x-----", "----x------"],
        "text": ["--x---xxxxx", "x-x--xxxxxx"],
        "question": ["------xxx--", "-----xxxxx-"],
        "answer": ["---------xx", "----------x"],
        "last": ["--------x--", "---------x-"],
    }.items(),
)
def test_named_groups(group: str, expected: list[str]) -> None:
    tokens = batch(["..tiiitttaa", "titiittttta"])
    assert drawn(masks(named([group]), tokens)[group]) == expected


def test_without_an_image_the_question_is_the_prompt() -> None:
    assert drawn(GROUPS["question"](batch(["..ttta"]))) == ["--xxx-"]


def test_right_padding_is_padding() -> None:
    assert drawn(GROUPS["last"](batch(["tiit..", "tttaa."]))) == ["---x--", "--x---"]


def test_random_control_is_of_equal_size_and_apart() -> None:
    tokens = batch([".tiiitttttttt", "ttiiiiiiiittt"])
    chosen = masks(named(["random:image"]), tokens)["random:image"]
    assert not (chosen & tokens.image).any()
    assert not (chosen & ~tokens.attended).any()
    assert chosen.sum(-1).tolist() == [3, 5]  # the second item has five text tokens and no more


def test_random_control_depends_on_seed_and_item_only() -> None:
    text = "t" * 12
    wide, narrow = batch([f".....iiii{text}"], [7]), batch([f"iiii{text}"], [7])
    both = batch([f"iiii{text}", f"iiii{text}"], [3, 7])
    first = drawn(Random("image")(narrow))[0]
    assert drawn(Random("image")(wide))[0][5:] == first
    assert drawn(Random("image")(both))[1] == first
    assert drawn(Random("image")(both))[0] != first
    assert drawn(Random("image", seed=1)(narrow))[0] != first


def test_random_control_can_come_from_another_group() -> None:
    tokens = batch(["ttttttttiitttttaaa"])
    assert not (Random("answer", of="question")(tokens) & ~GROUPS["question"](tokens)).any()
    assert set(named([Random("answer", of="question"), Random("image")])) == {
        "Random(like='answer', of='question', seed=0)",
        "random:image",
    }


def test_draw_takes_what_there_is() -> None:
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]])
    chosen = draw(mask, torch.tensor([2, 2]), [0, 1])
    assert chosen.sum(-1).tolist() == [2, 1]
    assert not (chosen & ~mask).any()


def test_groups_of_ones_own() -> None:
    tokens = batch([".ttiit", "tttiit"])
    own = torch.tensor([[True] * 6, [False] * 5 + [True]])
    found = masks(named({"first": lambda t: t.attended & (t.attended.cumsum(-1) == 1), "own": own}), tokens)
    assert drawn(found["first"]) == ["-x----", "x-----"]
    assert drawn(found["own"]) == ["-xxxxx", "-----x"]  # padding belongs to none


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown token group 'middle'; expected one of image, last_image"):
        named(["middle"])
    with pytest.raises(ValueError, match="unknown token group 'middle'"):
        named(["random:middle"])
    with pytest.raises(ValueError, match="groups is empty"):
        named([])


@pytest.mark.usefixtures("checks_off")
def test_what_is_no_group_is_refused() -> None:
    with pytest.raises(TypeError, match=r"group 'mine' is a tensor of torch\.int64; expected a name"):
        named({"mine": torch.ones(2, 3, dtype=torch.long)})
    with pytest.raises(TypeError, match="group 'mine' is int; expected a name"):
        named({"mine": 3})
    with pytest.raises(TypeError, match="must be a string or Random, got int"):
        named([3])
    with pytest.raises(TypeError, match="group 'mine' must give a boolean tensor"):
        masks(named({"mine": lambda tokens: tokens.ids}), batch(["tt"]))


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"group 'mine' has shape \[1, 3\], the batch has .* = \[1, 2\]"):
        masks(named({"mine": torch.ones(1, 3, dtype=torch.bool)}), batch(["tt"]))


@pytest.mark.parametrize(
    ("group", "why"),
    [
        ("image", "no image, or images take no positions in this model"),
        ("answer", "no answer was appended"),
        ("random:image", "no image"),
        ("question", "puts the image behind the text"),
    ],
)
def test_an_empty_group_names_its_item(group: str, why: str) -> None:
    tokens = batch(["ttt" if "image" in group else "tii"] * 2, [5, 4])
    with pytest.raises(ValueError, match=f"group '{group}' has no token in item 4: .*{why}"):
        masks(named([group]), tokens)


def test_features_that_a_model_inserts_are_told_from_tokens() -> None:
    inputs = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    image = torch.tensor([[True, True, False, False, False]])
    answer = torch.tensor([[False, False, True]])
    tokens = read_tokens(inputs, image, answer)
    assert tokens.ids.tolist() == [[-1, -1, 0, 5, 6]]
    assert drawn(tokens.attended) == ["xx-xx"]
    assert drawn(tokens.answer) == ["----x"]
    assert drawn(GROUPS["question"](tokens)) == ["---x-"]


def test_positions_that_do_not_add_up_are_refused() -> None:
    inputs = {"input_ids": torch.tensor([[0, 5, 6]])}
    with pytest.raises(
        ValueError, match=r"the decoder reads \[1, 5\] positions, the inputs have \[1, 3\] tok"
    ):
        read_tokens(inputs, torch.tensor([[True, False, False, False, False]]))


def test_answers_are_found_behind_any_prompt() -> None:
    vlm = VLM(build("llava")[0].model, tiny_processor())
    prompts, answers = ["what colour", "what colour is the shape ?"], [" red", " blue circle"]
    images = [Image.new("RGB", (16, 16))] * 2
    inputs = vlm.prepare(prompts, images, answers)
    found = answer_mask(vlm, inputs, prompts, images, answers)
    assert found.sum(-1).tolist() == [2, 3]
    assert found[:, -2:].all()
    assert found[1, -3]


def test_what_a_tokenizer_adds_behind_an_answer_is_not_the_prompt_s_last_token() -> None:
    tokens = Tokens(
        ids=torch.tensor([[1, 5, 6, 7, 2]]),
        attended=torch.ones(1, 5, dtype=torch.bool),
        image=torch.tensor([[True, False, False, False, False]]),
        answer=torch.tensor([[False, False, True, True, False]]),
        rows=[0],
    )
    assert GROUPS["last"](tokens).tolist() == [[False, True, False, False, False]]
    assert GROUPS["question"](tokens).tolist() == [[False, True, False, False, False]]
