"""The folder that a benchmark writes into."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Remove `folder` at the end; leave with a sentence where it holds anything before."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        sys.exit(
            f"--folder {folder} is there already and would be removed at the end; name a "
            "new or an empty folder."
        )
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
