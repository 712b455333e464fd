"""Base classes of what is read from files: an unknown field is an error, and nothing changes afterwards."""

from pydantic import BaseModel, ConfigDict


class Closed(BaseModel):
    """A model without unknown fields; values are converted where nothing is lost, such as 1 to 1.0."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Strict(Closed):
    """A model without unknown fields whose values have exactly the declared types."""

    model_config = ConfigDict(strict=True)
