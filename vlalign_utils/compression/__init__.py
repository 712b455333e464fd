"""Removal of submodules from a decoder, and maps fitted in their place in closed form."""
