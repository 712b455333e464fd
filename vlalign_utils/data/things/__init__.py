"""The world of real things: what people draw and name, in several drawing styles; knows no model."""
