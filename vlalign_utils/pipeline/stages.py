"""The stages of a registry entry, loaded as the entry says: what the notebooks measure and compare."""

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.loading.load import load_vlm
from vlalign_utils.pipeline.registry import BASE, Architecture


def load_stage(entry: Architecture, stage: str) -> VLM:
    """One stage: of a chain its own checkpoint, of one model itself or, for `base`, with its base's weights.

    Raises as `load_vlm` does.
    """
    wants_base = stage == BASE
    return load_vlm(
        entry.model,
        stage,
        revision=entry.revision,
        dtype=entry.dtype,
        device_map=entry.device_map,
        base=entry.base if wants_base else None,
        base_revision=entry.base_revision if wants_base else None,
    )


def load_stages(entry: Architecture, last: int | None = None) -> dict[str, VLM]:
    """All stages by name, in the order of training, or the `last` ones: fewer where there are fewer."""
    wanted = entry.stages if last is None else entry.stages[-last:]
    return {stage: load_stage(entry, stage) for stage in wanted}
