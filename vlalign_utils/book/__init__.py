"""The Jupyter Book around the executed notebooks: `python -m vlalign_utils.book toc|build|serve`."""
