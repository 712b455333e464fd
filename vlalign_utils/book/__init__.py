"""Results become pages: table of contents, generated pages, build, serve."""
