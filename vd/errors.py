"""The one exception that becomes one sentence and an exit code."""

USAGE = 2  # a wrong path, flag, file or state that the user can correct
LOSS_GAP = 3  # one class lost far more files than the other
SOME_FAILED = 1  # `vd predict` could not do some of its files


class VdError(Exception):
    """Our own error: one sentence naming the file or flag, the reason, the remedy.

    The command line prints it without a traceback and ends with `exit_code`.
    """

    def __init__(self, message: str, exit_code: int = USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code
