"""The connector: what stands between the vision tower and the decoder, found by the names of its modules."""

import re

from torch import nn

from vlalign_utils.driver.vlm import VLM

_CONNECTOR = re.compile(r"projector|connector|merger|resampler")


def connector(vlm: VLM) -> list[nn.Parameter]:
    """Parameters of the modules named like a connector. Raises ValueError when there are none."""
    bridge = [p for name, p in vlm.model.named_parameters() if _CONNECTOR.search(name)]
    if not bridge:
        raise ValueError(f"{type(vlm.model).__name__} has no module that is named like a connector")
    return bridge
