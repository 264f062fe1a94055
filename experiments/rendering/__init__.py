"""Rendered videos of two drawn figures, for the quickstart and the tests."""
