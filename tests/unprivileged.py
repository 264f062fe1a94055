"""Work without the right to read everything, for tests that run as root too."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody for a while, when root."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(_NOBODY)
    except OSError:
        pytest.skip("root here may be nobody else")
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that anybody may enter, which pytest's own is not, and write in."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
