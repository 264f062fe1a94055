"""Videos: the manifest, decoding, outcomes, splits."""
