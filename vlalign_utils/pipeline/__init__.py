"""Notebooks become results: registry, parameters, input hash, execution, staleness."""
