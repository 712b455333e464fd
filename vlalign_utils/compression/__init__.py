"""Which submodules of a decoder can be taken out, and what is fitted in their place, in closed form."""
