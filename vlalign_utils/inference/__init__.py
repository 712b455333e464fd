"""Many items through one VLM: batches, token groups, scores, pooled states, and their store on disk."""
