"""What `vd predict` says and writes: lines for people, and files in --out."""

from vd.console import say
from vd.predict.recording import Prediction


def report(name: str, prediction: Prediction) -> None:
    """Say what a person should know of a file that is not whole."""
    outcome = prediction.outcome
    if prediction.probability is None:
        say(f"{name} could not be predicted: {outcome.reason}")
    elif outcome.outcome == "partial":
        say(
            f"{name} is partial ({outcome.reason}): predicted from the {outcome.frames} "
            "frames that could be decoded"
        )
