"""Small files that promise, or unpack to, much more than they hold; and a measure."""

import gzip
import io
import resource
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

MiB = 2**20


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """Checks that a block adds at most so many bytes to Python's and the process's."""
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    added = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert peak <= num_bytes
    assert added <= num_bytes


def zipped_zeros(header: bytes, num_bytes: int) -> bytes:
    """A header and that many zeros, compressed with gzip."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as zipped:
        zipped.write(header)
        for _ in range(num_bytes // MiB):
            zipped.write(bytes(MiB))
    return file.getvalue()


def white_png(width: int, height: int) -> bytes:
    """A valid PNG of one bit a pixel, all of one colour."""
    rows = zlib.compressobj(1)
    row = bytes(1 + -(-width // 8))
    data = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def tar_header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A header of a tar file, whose size need not be true."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    # The size as a binary number, which may have 11 bytes.
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = 8 * b" "
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum
