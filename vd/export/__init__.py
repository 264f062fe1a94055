"""A run for other runtimes: ONNX and StableHLO, with an example and measured parity."""
