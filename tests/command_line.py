"""The command line, run in this process or in one of its own."""

import contextlib
import hashlib
import io
import runpy
import signal
import subprocess
import sys
from functools import partial

from vd.cli import main

VD = [sys.executable, "-m", "vd.cli"]
SMALL = "--epochs 3 --batch-size 8 --warmup-epochs 1 --projection-size 16 --hidden-size 8".split()


def vd(*arguments, code=0, cwd="."):
    """Run the command line in this process, which has imported everything already."""
    return _here(main, ["vd", *arguments], code, cwd)


def script(path, *arguments, code=0):
    """Run a script in this process; its folder is on the path, as Python has it."""
    sys.path.insert(0, str(path.parent))
    try:
        run = partial(runpy.run_path, str(path), run_name="__main__")
        return _here(run, [path, *arguments], code)
    finally:
        sys.path.remove(str(path.parent))


def _here(command, arguments, code, cwd="."):
    out, err, returned = io.StringIO(), io.StringIO(), 0
    with _own_settings(), contextlib.chdir(cwd):
        sys.argv = list(map(str, arguments))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                command()
            except SystemExit as ended:
                returned = ended.code or 0
    return _checked(code, returned, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _own_settings():
    """Give back what a command sets for its whole process."""
    arguments = sys.argv
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        sys.argv = arguments
        for number, handler in handlers.items():
            signal.signal(number, handler)


def vd_process(*arguments, code=0, **settings):
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [*VD, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )
    return _checked(code, done.returncode, done.stdout, done.stderr)


def _checked(expected, returned, out, err):
    """What a command printed, if it ended as expected."""
    assert returned == expected, err
    assert "Traceback" not in err
    return subprocess.CompletedProcess(VD, returned, out, err)


def train(clips, backbone, folder, *extra, code=0):
    return vd(
        "train", "--dataset-path", clips, "--cache-dir", folder / "cache", "--checkpoint-dir",
        folder / "run", "--backbone", backbone, "--no-mixed-precision",
        "--feature-preset", "best", *SMALL, *extra, code=code,
    )  # fmt: skip


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
