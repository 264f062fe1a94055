"""Videos: the manifest, decoding, scanning, splits."""
