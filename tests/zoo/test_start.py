import pytest
import torch
from accelerate.state import AcceleratorState

from vlalign_utils.zoo.start import half_precision, start


@pytest.fixture(autouse=True)
def _deterministic():
    AcceleratorState._reset_state(reset_partial_state=True)
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [("AVX512", torch.bfloat16), ("AVX2", torch.float32), ("DEFAULT", torch.float32)],
)
def test_bfloat16_is_for_processors_that_compute_it(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert half_precision("cpu") == dtype
    assert half_precision("cuda") == torch.bfloat16


@pytest.mark.parametrize(("capability", "precision"), [("AVX512", "bf16"), ("AVX2", "no")])
def test_another_processor_trains_in_float32_and_says_so(capability, precision, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert start("cpu").mixed_precision == precision
    assert ("float32 is used" in capsys.readouterr().out) == (precision == "no")
    assert start("cpu", "no").mixed_precision == "no"
    assert not capsys.readouterr().out  # nothing is other than it was asked for
