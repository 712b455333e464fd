"""Per-item numbers become intervals, nulls, verdicts, figures and the results file; knows no model."""
