"""Bytes -> text: UTF-8, compressed or not, in pieces. What is not UTF-8 is refused rather than guessed."""

import codecs
import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stylegen.config import UsageError
from stylegen.corpus.files import GZIP_ERRORS, damaged_gzip

PIECE_BYTES = 1 << 20
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """The text of one UTF-8 file. Raises UsageError with file and byte offset for undecodable or NUL bytes."""
    return "".join(decoded(path))


def decoded(path: Path) -> Iterator[str]:
    """The text of a file, in pieces of about PIECE_BYTES, with \\n for every line end and without a byte order mark.

    Raises UsageError with file and byte offset for bytes that are not UTF-8 and for NUL.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    offset = 0
    try:
        with _open(path) as file:
            while True:
                raw = file.read(PIECE_BYTES)
                _refuse_binary(path, raw, offset)
                text = newlines.decode(raw, final=not raw)
                yield text
                if not raw:
                    return
                offset += len(raw)
    except UnicodeDecodeError as error:
        at = offset + len(raw) - len(error.object) + error.start  # it holds what was left of the piece before
        raise UsageError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {at}; "
            f"convert it, for example: iconv -f LATIN1 -t UTF-8 {path.name} > fixed.txt"
        ) from None
    except GZIP_ERRORS as error:
        raise damaged_gzip(path, error) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _open(path: Path) -> contextlib.AbstractContextManager[Any]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb")


def _refuse_binary(path: Path, raw: bytes, offset: int) -> None:
    if offset == 0 and raw.startswith(UTF16_MARKS):
        raise UsageError(
            f"{path} is UTF-16, not UTF-8; convert it, for example: iconv -f UTF-16 -t UTF-8 {path.name} > fixed.txt"
        )
    if (nul := raw.find(b"\0")) >= 0:
        raise UsageError(
            f"{path} has a NUL byte at offset {offset + nul}, so it is not a text file; leave it out"
        )
