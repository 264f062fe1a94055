"""The parent of a process that trains with others: it makes one sentence of JAX's abort.

When a process of a run is lost, JAX aborts the others in C++, past all of Python. So the
command starts itself again as a child, waits, and says what became of it. The child's
Python writes where the parent would; what C++ writes comes to the parent, who shows it when
nothing else explains the end.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from types import FrameType
from typing import IO, NoReturn

from vd.console import say
from vd.errors import USAGE
from vd.signals import end_at_once

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
START_SECONDS = 300  # in which all processes of a run must have been started
LOST = (
    "another process of this run was lost or cannot be reached; finished work is kept: "
    "start all processes again with the same commands, and the run goes on."
)
INTERRUPTED = "interrupted; finished work is kept, the same command goes on"
_ABSENT = (
    f"not all processes of this run came within {START_SECONDS} s; start as many as "
    "--num-processes says, with one --coordinator-address that all can reach."
)
_CHILD = "VD_CHILD_OF"  # PID:descriptor of the parent and of its standard error
_ENDS = "vd ends with "
_LINES = 500  # of C++ that are kept
_PATIENCE = 4  # signals; C++ that waits for another process hears none


def started_by_parent() -> int | None:
    """The parent's process id in a child, whose streams are set apart; None elsewhere."""
    if (told := os.environ.pop(_CHILD, None)) is None:
        return None
    parent, stderr = map(int, told.split(":"))
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", 1, encoding="utf-8")
    sys.stderr = os.fdopen(stderr, "w", 1, encoding="utf-8")
    os.dup2(2, 1)  # what C++ prints
    return parent


def end(code: int) -> NoReturn:
    """End a child at once, without the waits of JAX's own exit; the parent knows the code."""
    end_at_once(code, f"\n{_ENDS}{code}\n")


def supervise() -> int:
    """Run this command as a child, forward signals to it, and return its exit code."""
    stderr = os.dup(2)
    came: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if child is not None:
            child.send_signal(number if len(came) < _PATIENCE else signal.SIGKILL)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, forward)
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_CHILD: f"{os.getpid()}:{stderr}"},
        stderr=subprocess.PIPE,
        pass_fds=[stderr],
        start_new_session=True,  # or Ctrl-C would reach it twice
    )
    if came:  # before there was a child
        child.send_signal(came[0])
    assert child.stderr is not None
    lines: deque[str] = deque(maxlen=_LINES)
    reader = threading.Thread(target=_keep, args=(child.stderr, lines), daemon=True)
    reader.start()
    code = child.wait()
    reader.join(timeout=2)  # decoding workers may hold the pipe for a moment
    return _explained(code, list(lines))


def _keep(pipe: IO[bytes], lines: deque[str]) -> None:
    for line in pipe:
        lines.append(line.decode(errors="replace").rstrip("\n"))


def _explained(code: int, lines: list[str]) -> int:
    """The exit code for a child's; says what the child could not."""
    for line in lines:
        if line.startswith(_ENDS):  # and was perhaps aborted after that
            return int(line.removeprefix(_ENDS))
    text = "\n".join(lines)
    if code == -signal.SIGABRT and "JAX distributed service" in text:
        say(f"vd: {_ABSENT if 'RegisterTask' in text else LOST}")
        return USAGE
    if -code in SIGNALS:  # while it waited for the others
        say(f"vd: {INTERRUPTED}")
        return 128 - code
    if text.strip() and code:
        say(text)
    if code < 0:
        say(
            f"vd: the process ended by signal {-code} ({signal.strsignal(-code)}); finished "
            "work is kept: start all processes again with the same commands."
        )
        return 128 - code
    return code
