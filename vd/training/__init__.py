"""Training: loss, optimizer, batches, step, loop, checkpoints."""
