"""The embedded world: seeded images, captions, questions and suites of items; knows no model."""
