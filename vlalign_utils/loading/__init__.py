"""A name becomes a VLM, with everything that can be wrong checked before a weight is read."""
