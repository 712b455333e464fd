"""The connector of a model: its parameters, its linear layers, and what it is given of images."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vlalign_utils.driver.connector import connector
from vlalign_utils.driver.vlm import VLM


def parameters(vlm: VLM) -> dict[str, nn.Parameter]:
    """Parameters of the connector by name. Raises ValueError where there is none."""
    own = {id(parameter) for parameter in connector(vlm)}
    return {name: p for name, p in vlm.model.named_parameters() if id(p) in own}


def linears(vlm: VLM) -> list[nn.Linear]:
    """Linear layers of the connector, in the order of the data. Raises ValueError where there is none."""
    own = {id(parameter) for parameter in connector(vlm)}
    return [m for m in vlm.model.modules() if isinstance(m, nn.Linear) and id(m.weight) in own]


def token_features(
    vlm: VLM, pixel_values: Float[Tensor, "... channels height width"]
) -> Float[Tensor, "images tokens features"]:
    """What the connector is given of each image: the tower's features as they become tokens, row by row.

    `pixel_values` are as the model's processor gives them.
    """
    model: Any = vlm.model
    images = pixel_values.to(model.device, model.dtype)
    (given,) = given_to(linears(vlm)[0], lambda: model.get_image_features(pixel_values=images))
    return given


def given_to(layer: nn.Module, run: Callable[[], Any]) -> list[Tensor]:
    """First arguments of the calls of `layer` while `run` is called."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        run()
    finally:
        handle.remove()
    return seen
