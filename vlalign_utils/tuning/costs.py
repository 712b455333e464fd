"""FLOPs of a strategy's training, predicted from one measured forward.

A product with a weight costs as much in each direction: forward, the gradient of its input, and the gradient
of the weight, which only a trained weight needs. An optimiser's own arithmetic is not counted.
"""

from vlalign_utils.tuning.flops import Forward
from vlalign_utils.tuning.strategies import Strategy


def predicted(
    strategy: Strategy, forward: Forward, recorded: bool = False, checkpointing: bool = False
) -> float:
    """FLOPs of one step: the forward, the gradient down to the lowest trained weight, those of the weights.

    With `recorded`, what enters the lowest trained layer was recorded and nothing below runs. With
    `checkpointing`, a layer through which gradient passes runs forward again. LoRA is on every linear module.

    Counted though not computed: the gradients of the very first trained product's input and of the image that
    cross-attention reads, and the last product of a repeated layer, where torch stops early. Not counted: the
    gradients of weights before layer 0 that are no connector. transformers' activation_checkpointing_enable
    passes gradient through all layers until disable_input_require_grads is called.
    Raises ValueError for a layer that is not there, an input that cannot be recorded, and LoRA in one part.
    """
    strategy.check_layers(len(forward.layers))
    if strategy.part:
        raise ValueError(
            f"strategy {strategy.name!r} has LoRA in the {strategy.part} alone, and FLOPs are counted for "
            "whole layers: measure a step with `flops.step_flops`"
        )
    if recorded:
        strategy.check_recordable()
    # Gradient passes through `lowest` and all above.
    lowest = strategy.start if strategy.start is not None else forward.entry
    lowest = 0 if strategy.language else min((lowest, *strategy.layers))
    flops = float(forward.head.forward + forward.head.backward + strategy.language * forward.head.weights)
    if not recorded:
        flops += forward.tower.forward + forward.connector.forward
        flops += sum(layer.forward for layer in forward.layers[:lowest])
    if strategy.connector:
        flops += forward.connector.backward + forward.connector.weights
    for k, layer in enumerate(forward.layers[lowest:], lowest):
        runs = 2 if checkpointing else 1
        flops += runs * layer.forward + layer.backward
        if strategy.language or (k in strategy.layers and not strategy.rank):
            flops += layer.weights
        elif k in strategy.layers:
            flops += (runs + 2) * strategy.rank * layer.adapters
    return flops


def of_training(
    strategy: Strategy,
    forward: Forward,
    steps: int,
    batches: int,
    recorded: bool = False,
    checkpointing: bool = False,
) -> float:
    """FLOPs of all steps over so many different batches, each of which is recorded once if any is.

    Raises ValueError as `predicted` does.
    """
    flops = steps * predicted(strategy, forward, recorded, checkpointing)
    if recorded:
        below = sum(layer.forward for layer in forward.layers[: strategy.start])
        flops += batches * (forward.tower.forward + forward.connector.forward + below)
    return flops
