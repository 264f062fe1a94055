"""Reports: a run or a cross-validation as one self-contained page."""
