"""Reports: a run, a cross-validation or a comparison as one self-contained page."""
