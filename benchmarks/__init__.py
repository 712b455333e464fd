"""Speed and memory against the usual ways, side by side in one run: `make bench`."""
