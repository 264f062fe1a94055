"""Violence detection in video: features, a bidirectional LSTM, honest evaluation."""

from typing import Any

__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    """`load` is imported when it is first used: importing `vd` loads nothing heavy."""
    if name == "load":
        from vd.predict.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
