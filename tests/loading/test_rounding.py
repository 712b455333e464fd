import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from vlalign_utils.loading.parts import LANGUAGE_MODEL, published_file
from vlalign_utils.loading.rounding import rounding


def test_the_noise_is_that_of_the_weights_before_they_were_rounded(tmp_path):
    before = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    packed = quantize(before, GGMLQuantizationType.Q4_1)
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("rounded", packed, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.add_tensor("whole", np.ones((3, 4096), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = rounding(tmp_path / "model.gguf")
    after = dequantize(packed, GGMLQuantizationType.Q4_1)
    assert found.share == pytest.approx(64 * 256 / (64 * 256 + 3 * 4096))
    assert found.noise == pytest.approx(
        ((after - before) ** 2).mean() ** 0.5 / (after**2).mean() ** 0.5, rel=0.05
    )


@pytest.mark.slow
def test_the_language_model_has_four_bits_in_its_layers():
    found = rounding(published_file(LANGUAGE_MODEL))
    assert 0.7 < found.share < 0.85  # all but the embeddings
    assert 0.04 < found.noise < 0.12
