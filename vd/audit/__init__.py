"""What may be wrong with a data set: copies, leakage, shortcuts."""
