import pytest
import torch

from vlalign_utils.zoo.shared_prefix import PADDING, pack

# ids, and the answer's ids in place
CAT = ([1, 2, 7, 7, 3, 4, 9], [-1, -1, -1, -1, -1, 4, 9])
DOG = ([1, 2, 7, 7, 5, 6, 4, 9], [-1, -1, -1, -1, -1, -1, 4, 9])
LONE = ([1, 8, 4], [-1, -1, 4])


def test_questions_follow_their_common_beginning():
    packed = pack([[CAT, DOG], [LONE]], padding_id=0)
    assert packed.ids.tolist() == [[1, 2, 7, 7, 3, 4, 9, 5, 6, 4, 9], [1, 8, 4] + [0] * 8]
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7]
    assert packed.segments[0].tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert packed.answers[0].tolist() == [-1] * 5 + [4, 9, -1, -1, 4, 9]
    assert (packed.segments[1, 3:] == PADDING).all()
    assert packed.answers[1].tolist() == [-1, -1, 4] + [-1] * 8


def test_the_token_before_an_answer_is_never_shared():
    """Two answers to one question: each is predicted from a token of its own."""
    packed = pack([[CAT, CAT]], padding_id=0)
    assert packed.segments[0].tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert (packed.segments[packed.answers >= 0] > 0).all()


def test_a_question_sees_the_beginning_and_itself_only():
    mask = pack([[CAT, DOG], [LONE]], padding_id=0).mask(torch.float32)
    seen = (mask == 0)[:, 0]
    assert seen[0, 6].tolist() == [True] * 7 + [False] * 4
    assert seen[0, 8].tolist() == [True] * 4 + [False] * 3 + [True] * 2 + [False] * 2
    assert not seen[0].triu(1).any()
    assert seen.any(-1).all()  # also of padding: softmax over nothing is NaN
    assert not seen[1, :3, 3:].any()


def test_a_question_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="no answer"):
        pack([[([1, 2], [-1, -1])]], padding_id=0)
