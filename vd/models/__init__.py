"""The model: heads, the bidirectional LSTM, losses, scoring."""
