"""Documents on disk: their text end to end in one file, so that splitting, counting and tokenizing need no memory.

The store is scratch: it lives while a token cache is built. Documents are named by number or by byte ranges.
"""

import codecs
import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stylegen.corpus.read import Findings, Piece

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class TextStore:
    """Documents that are not empty, in order.

    path         file with their UTF-8 text
    starts       int64 (documents + 1,), where each begins, and the end of the last, in bytes
    characters   int64 (documents,)
    prompts      int64 (documents,), bytes at the start that are prompt; 0 where there is none
    digest       hash of the texts, of where they end, and of the prompts
    """

    path: Path
    starts: np.ndarray
    characters: np.ndarray
    prompts: np.ndarray
    digest: str

    @classmethod
    def write(cls, path: Path, pieces: Iterable[Piece], findings: Findings) -> "TextStore":
        """Write the documents to `path`; those of white space only are left out and counted in `findings`."""
        starts, characters, prompts = array("q", [0]), array("q"), array("q")
        digest, document = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        length, blank = 0, True
        with open(path, "wb") as file:
            for text, ends, prompt in pieces:
                raw = text.encode()
                file.write(raw)
                document.update(raw)
                length += len(text)
                blank = blank and not text.strip()
                if not ends:
                    continue
                if blank:
                    findings.dropped["empty"] = findings.dropped.get("empty", 0) + 1
                    file.seek(starts[-1])
                    file.truncate()
                else:
                    starts.append(file.tell())
                    characters.append(length)
                    prompts.append(len(text[:prompt].encode()))
                    digest.update(document.digest() + prompts[-1].to_bytes(8, "little"))
                document, length, blank = hashlib.blake2b(digest_size=16), 0, True
        tables = [np.array(values, dtype=np.int64) for values in (starts, characters, prompts)]
        return cls(path, tables[0], tables[1], tables[2], digest.hexdigest())

    @property
    def ranges(self) -> np.ndarray:
        """int64 (documents, 2): first byte and end of each document."""
        return np.stack([self.starts[:-1], self.starts[1:]], axis=1)

    def documents(self, ranges: np.ndarray) -> Iterator[Iterator[str]]:
        """Each byte range as an iterator of chunks of text, to be read in order and one after the other."""
        with open(self.path, "rb") as file:
            for start, end in ranges.tolist():
                yield _chunks(file, start, end)

    def chunks(self, start: int, end: int) -> Iterator[str]:
        """One byte range, which begins and ends between two characters, in chunks of text."""
        with open(self.path, "rb") as file:
            yield from _chunks(file, start, end)

    def read(self, start: int, end: int) -> bytes:
        """The bytes of a range."""
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


def _chunks(file, start: int, end: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    while start < end:
        file.seek(start)  # each time: another range may have been read meanwhile
        raw = file.read(min(end - start, CHUNK_BYTES))
        start += len(raw)
        yield decoder.decode(raw)
