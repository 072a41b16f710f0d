"""Zips from outside: what may be in one is checked before anything is read, and counted while it is.

Never a tar: its links and filters have failed too often. Members are taken by our own loop.
"""

import stat
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from shared.errors import Refused, Unreadable
from shared.formats import foreign_kind, quoted

MEMBERS, MANY = 1000, 100_000  # files in a model's zip, and in a dataset's
DIRECTORY = {MEMBERS: 4 * 1024**2, MANY: 32 * 1024**2}  # bytes of the zip's own table of contents
UNPACKED = 16 * 1024**3
RATIO = 100  # unpacked to packed, beyond the first 10 MiB
SMALL = 10 * 1024**2
CHUNK = 1024**2
DAMAGED = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, zlib.error, struct.error)
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


def members(file: BinaryIO, most: int = MEMBERS) -> list[zipfile.ZipInfo]:
    """The files in a zip, without what systems add of their own. Raises Refused naming the member.

    Reads the table of contents alone, and that only where it is of a sane size. `most` is MEMBERS or MANY.
    """
    size = check_directory(file, most)
    try:
        archive = zipfile.ZipFile(file)
    except DAMAGED as wrong:
        raise refused(f"The zip is broken ({wrong}). Pack it again, or upload it again.") from None
    found = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
    for entry in found:
        check_member(entry)
    check_sizes(found, size)
    counts = Counter(entry.filename for entry in found)
    if twice := next((name for name, count in counts.items() if count > 1), ""):
        raise refused(f"The zip holds «{quoted(twice)}» twice. Pack it again.")
    wanted = [entry for entry in found if not is_litter(entry.filename)]
    if not wanted:
        raise refused("The zip is empty. Put the files into it and upload it again.", "empty_file")
    return wanted


def check_sizes(found: list[zipfile.ZipInfo], size: int) -> None:
    """Raises Refused for members that lie outside of the zip, unpack to too much, or share their bytes."""
    if any(not 0 <= entry.header_offset < size for entry in found):
        raise refused("The zip is broken: its table of contents points outside of it. Pack it again.")
    packed, unpacked = (
        sum(getattr(entry, name) for entry in found) for name in ("compress_size", "file_size")
    )
    if unpacked > UNPACKED:
        raise refused(f"The zip unpacks to more than {UNPACKED // 1024**3} GiB. Split it.")
    if packed > size or unpacked > SMALL + RATIO * packed:
        raise refused(
            "The files in the zip unpack to far more than it can hold. Pack them again with plain «deflate».",
            "zip_bomb",
        )


def check_directory(file: BinaryIO, most: int) -> int:
    """The bytes of the whole zip. Raises Refused unless its table of contents is there and small."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 65_557 - 76))
    tail = file.read()
    end = tail.rfind(END)
    if end < 0 or len(tail) < end + 22:
        raise refused("The zip is cut short: its table of contents is missing. Upload it again.")
    count, length = struct.unpack("<HL", tail[end + 10 : end + 16])
    if (locator := tail.rfind(LOCATOR64, 0, end)) >= 0 and len(tail) >= locator + 20:
        (place,) = struct.unpack("<Q", tail[locator + 8 : locator + 16])
        count, length = large_directory(file, place)
    if count > most:
        raise refused(f"The zip holds {count} files; {most} are the most.", "too_many_members")
    if length > DIRECTORY[most]:
        raise refused("The zip's table of contents is larger than any honest one. Pack it again.")
    return size


def large_directory(file: BinaryIO, place: int) -> tuple[int, int]:
    """(entries, bytes) of the table of contents as its 64-bit record says."""
    file.seek(min(place, file.seek(0, 2)))
    record = file.read(56)
    if not record.startswith(END64) or len(record) < 56:
        raise refused("The zip is broken: its 64-bit record is missing. Pack it again.")
    return struct.unpack("<QQ", record[32:48])


def check_member(entry: zipfile.ZipInfo) -> None:
    """Raises Refused for a member that reaches outside, is no plain file, or is a bomb."""
    name = quoted(entry.filename)
    parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
    # zipfile cuts names at a zero byte and hides it: the original name tells
    if (
        not parts
        or ".." in parts
        or entry.filename[0] in "/\\"
        or ":" in entry.filename
        or "\0" in entry.orig_filename
    ):
        raise refused(
            f"The zip holds «{name}», a path outside its own folder. Pack the plain folder again.",
            "unsafe_path",
        )
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise refused(f"The zip holds «{name}», a link or device. Pack the files themselves.", "unsafe_path")
    if entry.flag_bits & 0x1:
        raise refused(f"«{name}» in the zip is encrypted. Pack it without a password.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise refused(f"«{name}» is packed by an unusual method. Pack it with plain «deflate».")
    if entry.file_size > SMALL and entry.file_size > RATIO * max(entry.compress_size, 1):
        raise refused(
            f"«{name}» unpacks to more than {RATIO} times its size in the zip. Upload it without the zip.",
            "zip_bomb",
        )


def is_litter(name: str) -> bool:
    """Whether a desktop added it on its own."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")


def unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Writes one member to `path`; not a byte more than the zip announced. Raises Refused."""
    left = entry.file_size
    try:
        with archive.open(entry) as source, path.open("wb") as target:
            while piece := source.read(CHUNK):
                left -= len(piece)
                if left < 0:
                    raise refused(
                        f"«{quoted(entry.filename)}» unpacks to more than the zip announces.", "zip_bomb"
                    )
                target.write(piece)
    except DAMAGED as wrong:
        raise refused(f"«{quoted(entry.filename)}» in the zip is damaged ({wrong}). Pack it again.") from None


def content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    """A member's bytes. Raises Unreadable where it is larger than `most` or damaged."""
    if entry.file_size > most:
        raise Unreadable(f"is larger than {most // 1024**2} MB")
    try:
        with archive.open(entry) as source:
            data = source.read(most + 1)
    except DAMAGED as wrong:
        raise Unreadable(f"is damaged in the zip ({quoted(str(wrong))})") from None
    if len(data) != entry.file_size:
        raise Unreadable("has not as many bytes as the zip announces")
    return data


def head_of(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, length: int) -> bytes:
    """The first bytes of a member. Raises Refused where it is damaged or an archive itself."""
    try:
        with archive.open(entry) as source:
            head = source.read(length)
    except DAMAGED as wrong:
        raise refused(f"«{quoted(entry.filename)}» in the zip is damaged ({wrong}). Pack it again.") from None
    if head.startswith(b"PK\x03\x04") or foreign_kind(head).endswith("archive"):
        raise refused(
            f"«{quoted(entry.filename)}» in the zip is an archive itself. Pack the files directly.",
            "nested_archive",
        )
    return head


def refused(message: str, code: str = "invalid_zip") -> Refused:
    """A refusal of the uploaded zip."""
    return Refused(message, param="file", code=code)
