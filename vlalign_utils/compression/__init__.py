"""Which submodules of a decoder can be taken out, what is put in their place, and what that saves."""
