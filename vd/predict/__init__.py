"""Prediction: video files to probabilities of violence."""
