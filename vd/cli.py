"""The command line: one subcommand for each task; parses, calls, prints; nothing else.

Heavy modules are imported by the command that needs them, so that help and errors are
quick.
"""

import argparse
import atexit
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tyro

from vd import __version__
from vd.commands import (
    Adapt,
    AdaptedCrossval,
    Audit,
    Crossval,
    Extract,
    Scan,
    Split,
    Sweep,
    Train,
)
from vd.config import DataConfig
from vd.console import Interrupted, listen, say
from vd.errors import USAGE, VdError
from vd.run_commands import Compare, Evaluate, Export, Predict, Report
from vd.training.distributed import LOST, end, processes

if TYPE_CHECKING:
    from vd.models.head import Head

_FLAT = (tyro.conf.OmitArgPrefixes,)
_COMMANDS: tuple[Any, ...] = (
    Scan, Audit, Split, Extract, Train, Adapt, Sweep, Crossval, Evaluate, Compare, Report, Predict,
    Export,
)  # fmt: skip


def main() -> None:
    """The console script `vd`."""
    if sys.argv[1:] == ["--version"]:
        print(f"vd {__version__}")
    else:
        run_command(_command)


def _command() -> int:
    """Call the command that the arguments name."""
    commands = {command.__name__.lower(): command for command in _COMMANDS}
    name, *flags = sys.argv[1:] or [""]
    if name == "crossval" and "--adapt" in flags:
        commands[name] = AdaptedCrossval
    elif name in ("train", "sweep", "crossval"):
        commands[name] = _with_head_flags(commands[name])
    chosen = tyro.extras.subcommand_cli_from_dict(
        commands, prog="vd", description="Violence detection in video.", config=_FLAT
    )
    return int(chosen())


def _with_head_flags(command: Any, head: "type[Head] | None" = None) -> Any:
    """The command with the settings of the head that it trains among its flags."""
    from vd.models.plugins import import_head, with_head_settings

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--head", type=import_head, default=head)
    head = parser.parse_known_args()[0].head
    return with_head_settings(command, head) if head else command


def experiment(
    description: str | None,
    command: type[Train] = Train,
    head: "type[Head] | None" = None,
    loss: Callable[..., Any] | None = None,
    augmentation: Callable[..., Any] | None = None,
    **defaults: Any,
) -> None:
    """Run an experiment script: its settings are defaults, every one of them a flag."""
    if command is Train:
        defaults["data"] = DataConfig(dataset_path=tyro.MISSING)

    def run() -> int:
        with_head = _with_head_flags(command, head)
        chosen = tyro.cli(
            with_head,
            default=with_head(**defaults),
            description=description,
            config=_FLAT,
        )
        return chosen(head=head, loss=loss, augmentation=augmentation)

    run_command(run)


def run_command(command: Callable[[], int]) -> None:
    """Call a command and exit; our own errors and signals are one sentence each."""
    listen()
    # else Python looks for garbage among all that it imported
    atexit.register(gc.freeze)
    code, message = 0, ""
    try:
        code = command()
    except VdError as error:
        code, message = error.exit_code, f"vd: {error}"
    except Interrupted as signal_came:
        code = signal_came.exit_code
        message = f"vd: interrupted; {signal_came.kept}."
    except BrokenPipeError:  # `vd predict … | head` has read enough
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        code, message = USAGE, f"vd: {error}; name another file or folder."
    except Exception:
        if processes().count == 1:
            raise
        traceback.print_exc()
        code, message = 1, f"vd: {LOST}"
    if message:
        say(message)
    end(code)


if __name__ == "__main__":
    main()
