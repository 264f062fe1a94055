"""The structure of a GIF file: FFmpeg plays one that is cut or zeroed without a word."""

import mmap
from pathlib import Path
from typing import Literal

_EXTENSION, _IMAGE, _TRAILER = b"!", b",", b";"
_PADDING = b"\0\r\n "  # what may stand behind the end


def gif_damage(
    path: Path,
) -> tuple[Literal["", "truncated", "corrupt-frames"], float]:
    """Walk a GIF's blocks (GIF89a, appendix A): how it is damaged, and the share before it.

    Truncated: the file ends before its trailer, and how much lacks is not known. Corrupt:
    no block begins where one should, or something stands behind the trailer.
    """
    with (
        open(path, "rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        try:
            place = 13 + _colours(content[10])  # signature and screen come first
            while (block := content[place : place + 1]) != _TRAILER:
                if block == _EXTENSION:
                    place += 2  # with its label
                elif block == _IMAGE:
                    place += 11 + _colours(content[place + 9])  # with the code size
                elif block:
                    return "corrupt-frames", place / len(content)
                while size := content[place]:  # sub-blocks
                    place += 1 + size
                place += 1
        except IndexError:
            return "truncated", 1.0
        if content[place + 1 :].strip(_PADDING):
            return "corrupt-frames", place / len(content)
        return "", 1.0


def _colours(flags: int) -> int:
    """Bytes of the colour table that a screen or an image has."""
    return 3 << (1 + (flags & 7)) if flags & 0x80 else 0
