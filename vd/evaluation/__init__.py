"""Evaluation: restored checkpoints, metrics, pictures."""
