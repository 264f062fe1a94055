"""Violence detection in video: features, a bidirectional LSTM, honest evaluation."""

__version__ = "0.1.0"
