"""Capabilities of a model: names, meanings, findings, and the error for what it does not allow."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Result of one trial: True, False, or None where it could not be tried, and what was seen."""

    works: bool | None
    detail: str


MEANINGS = {
    "replay": "the recorded decoder call, run again, gives the recorded logits exactly",
    "image_positions": "image features take token positions",
    "whole_state": "the residual stream is all that a layer passes on, from the first layer",
    "causal": "no token sees a later one",
    "padding": "a row in a padded batch is the row alone",
    "freeze": "image tokens can be held still while other tokens see them",
    "knockout": "tokens cut off from the image by attention do not change with the pixels",
    "cross_off": "with cross-attention cut in every layer, pixels change nothing",
    "rows": "many edits run in one batch",
    "suffix": "tokens after the image run by themselves, on recorded keys and values",
}


@dataclass(frozen=True)
class Capabilities:
    """One finding for each entry of MEANINGS, all from one trial on the model itself.

    From layer `whole_from` on the residual stream is all that a layer passes on.
    """

    model: str
    replay: Finding
    image_positions: Finding
    whole_state: Finding
    causal: Finding
    padding: Finding
    freeze: Finding
    knockout: Finding
    cross_off: Finding
    rows: Finding
    suffix: Finding
    whole_from: int

    def require(self, *names: str) -> None:
        """Raise ValueError, saying what was seen, unless all the named things work in this model."""
        for name in names:
            finding: Finding = getattr(self, name)
            if not finding.works:
                raise ValueError(f"{self.model} does not allow {name} ({MEANINGS[name]}): {finding.detail}")

    def findings(self) -> dict[str, Finding]:
        """Findings by name, in the order of MEANINGS."""
        return {name: getattr(self, name) for name in MEANINGS}

    def __str__(self) -> str:
        """One line per finding."""
        words = {True: "yes", False: "no", None: "not tried"}
        lines = [f"{name}: {words[f.works]}, {f.detail}" for name, f in self.findings().items()]
        return "\n".join([self.model, *lines])
