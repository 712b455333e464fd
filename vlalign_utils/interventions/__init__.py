"""What edits change: sweeps of edits over layers, scored on items, and the band they point to."""
