from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vlalign_utils import load_vlm
from vlalign_utils.data.things.questions import Question
from vlalign_utils.inference.answers import answer_mask
from vlalign_utils.zoo.answering import Answering, Example, batch_of

_q = partial(Question, "any")


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("zoo/llava", device="cpu")


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    first, second = (Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)) for _ in range(2))
    return [
        Example(first, (_q("what is there?", "red circle"), _q("is there a red circle?", "yes"))),
        Example(None, (_q("what is there?", "nothing"),)),
        Example(second, (_q("how many things are there?", "two"), _q("what is there?", "one")) * 2),
    ]


@pytest.mark.slow
@torch.no_grad()
def test_the_loss_is_that_of_every_question_asked_alone(vlm, examples):
    """Each by the model's own forward, image and all, without packing or padding."""
    total, tokens = 0.0, 0
    for example in examples:
        for question in example.questions:
            prompt, answer = question.prompt, question.answer
            images = None if example.image is None else [example.image]
            inputs = vlm.prepare([prompt], images, [answer])
            mask = answer_mask(vlm, inputs, [prompt], images, [answer])[:, 1:]
            logits = vlm.model(**inputs).logits[:, :-1]
            total += F.cross_entropy(logits[mask], inputs["input_ids"][:, 1:][mask], reduction="sum")
            tokens += int(mask.sum())
    loss = Answering(vlm)(batch_of(vlm, examples))
    torch.testing.assert_close(loss, total / tokens)


def test_an_image_is_given_once_whatever_the_number_of_questions(vlm, examples):
    seeing, blind = batch_of(vlm, examples)
    assert len(seeing["pixel_values"]) == 2
    alone = vlm.prepare(["?"], [examples[2].image])["pixel_values"]
    assert torch.equal(seeing["pixel_values"][1:], alone)
    assert "pixel_values" not in blind
    assert len(blind["input_ids"]) == 1
