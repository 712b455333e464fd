import torch

from vlalign_utils.driver.padding import attended_tokens, single_row


def test_the_mask_of_the_tokens_the_decoder_reads() -> None:
    ids, mask = torch.ones(1, 3, dtype=torch.long), torch.tensor([[0, 1, 1]])
    given = {"input_ids": ids, "attention_mask": mask}
    assert attended_tokens(given, (1, 3), None).tolist() == [[False, True, True]]
    # An encoder-decoder's mask is over what its encoder reads.
    assert attended_tokens({**given, "decoder_input_ids": ids}, (1, 3), None).all()
    own = {**given, "decoder_input_ids": ids, "decoder_attention_mask": mask.flip(1)}
    assert attended_tokens(own, (1, 3), None).tolist() == [[True, True, False]]


def test_image_features_that_a_model_inserts_are_no_padding() -> None:
    given = {"input_ids": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.tensor([[0, 1]])}
    image = torch.tensor([[True, True, False, False]])
    assert attended_tokens(given, (1, 4), image).tolist() == [[True, True, False, True]]
    assert attended_tokens(given, (1, 4), None).all()
    assert attended_tokens({"input_ids": given["input_ids"]}, (1, 2), None).all()


def test_a_row_by_itself_has_no_padding_and_its_own_share_of_the_pixels() -> None:
    ids, mask = torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.arange(12.0).view(4, 3)}
    first, second = single_row(given, 0), single_row(given, 1)
    assert first is not None
    assert second is not None
    assert first["input_ids"].tolist() == [[5, 6]]
    assert second["input_ids"].tolist() == [[7, 8, 9]]
    assert second["pixel_values"].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert single_row({"input_ids": ids}, 0) is None
    assert single_row({**given, "pixel_values": torch.zeros(3, 3)}, 0) is None
    sizes = torch.tensor([[1, 2, 2], [1, 2, 2]])
    alone = single_row({**given, "image_grid_thw": sizes}, 1)
    assert alone is not None
    assert alone["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert single_row({**given, "image_grid_thw": sizes.cumsum(0)}, 1) is None  # not equally many pixels
