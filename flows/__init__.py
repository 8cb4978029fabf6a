"""Prefect flows and the `rlhf` command: order, retries, approval. No maths, no thresholds."""
