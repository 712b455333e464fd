import pytest
import torch

from vlalign_utils import load_suite, load_vlm
from vlalign_utils.compression.bypass import bypassed, fit_bypasses, nothing, ranks
from vlalign_utils.compression.calibration import calibrate, module_of
from vlalign_utils.compression.closed_form import in_basis, low_rank, shared_basis
from vlalign_utils.inference.scoring import as_batch
from vlalign_utils.interventions.submodule_removal import removed

ITEMS = load_suite("attributes", 8)
UNITS = [(2, "attention"), (2, "MLP"), (5, "MLP"), (6, "attention")]


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("zoo/llava")


def logits(vlm):
    batch = as_batch(vlm, ITEMS, range(len(ITEMS)))
    with torch.no_grad():
        return vlm.model(**batch.inputs, use_cache=False).logits[batch.inputs["attention_mask"].bool()]


def one_at_a_time(vlm, found, strength):
    """Every bypass fitted in a forward of its own, with those before it in place."""
    batch = as_batch(vlm, ITEMS, range(len(ITEMS)))
    kept, sizes = batch.inputs["attention_mask"].flatten().bool(), ranks(vlm, UNITS)
    basis = shared_basis(torch.stack([found.inputs[2], found.inputs[5]]), sizes["MLP"])
    empty, fitted = nothing(vlm, ITEMS, UNITS), {}
    for unit in UNITS:
        seen = []

        def note(module, args, kwargs, output, seen=seen):
            x = args[0] if args else kwargs["hidden_states"]
            y = output if isinstance(output, torch.Tensor) else output[0]
            seen += [t.flatten(0, 1)[kept].double() for t in (x, y)]

        with bypassed(vlm, fitted):
            handle = module_of(vlm, unit).register_forward_hook(note, with_kwargs=True)
            logits(vlm)
            handle.remove()
        x, y = seen
        if unit[1] == "MLP":
            factors = basis, in_basis(basis, x.T @ x, x.T @ y, strength)
        else:
            factors = low_rank(x.T @ x, x.T @ y, sizes["attention"], strength)
        made = type(empty[unit])(tuple(f.float() for f in factors), empty[unit].returned)
        fitted[unit] = made
    return fitted


def test_one_forward_fits_what_one_forward_for_each_would(vlm):
    found = calibrate(vlm, ITEMS)
    fitted, known = fit_bypasses(vlm, ITEMS, UNITS, found), one_at_a_time(vlm, found, 1e-2)
    assert list(fitted) == UNITS
    for unit in UNITS:
        product, expected = (b.factors[0] @ b.factors[1] for b in (fitted[unit], known[unit]))
        torch.testing.assert_close(product, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_bypass_is_nearer_to_the_model_than_nothing(vlm):
    whole = logits(vlm)
    fitted = fit_bypasses(vlm, ITEMS, UNITS, calibrate(vlm, ITEMS))
    errors = []
    for bypasses in (fitted, nothing(vlm, ITEMS, UNITS)):
        with bypassed(vlm, bypasses):
            errors.append(float((logits(vlm) - whole).norm()))
    assert errors[0] < 0.8 * errors[1]
    assert torch.equal(logits(vlm), whole)  # all is as before


@pytest.mark.parametrize("part", ["attention", "MLP"])
def test_nothing_in_its_place_is_plain_removal(vlm, part):
    with bypassed(vlm, nothing(vlm, ITEMS, [(3, part)])):
        found = logits(vlm)
    with removed(vlm, 3, 3, (part,)):
        torch.testing.assert_close(found, logits(vlm))


def test_bypasses_keep_within_their_share_of_parameters(vlm):
    fitted = fit_bypasses(vlm, ITEMS, UNITS, calibrate(vlm, ITEMS), share=0.1)
    for part in ("attention", "MLP"):
        units = [unit for unit in UNITS if unit[1] == part]
        replaced = sum(p.numel() for unit in units for p in module_of(vlm, unit).parameters())
        own = sum(fitted[unit].parameters() for unit in units)
        own += fitted[units[0]].factors[0].numel() if part == "MLP" else 0
        assert 0.05 * replaced < own <= 0.1 * replaced
    assert ranks(vlm, [(2, "MLP")])["attention"] == 0


def test_a_share_that_is_too_small_is_refused(vlm):
    with pytest.raises(ValueError, match="share is 0"):
        ranks(vlm, UNITS, 0)
    with pytest.raises(ValueError, match="less than one dimension"):
        ranks(vlm, UNITS, 1e-6)
