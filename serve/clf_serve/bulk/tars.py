"""Images in tar files, one sequential read each: samples as WebDataset groups them, or any tar of pictures.

Members that stand one after another and share a path up to the first dot of the last part are one sample, whose key
that path is. Its image is the member whose ending is an image's; where there are several, the first with no further dot
in its ending (``0001.jpg`` before ``0001.mask.png``). The others are left out and counted.
Source: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from clf.errors import DataError
from clf.images import DEFAULT_LIMITS, SUFFIXES

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass
class Sample:
    """One image of a tar."""

    key: str
    name: str
    """Of the member."""
    offset: int
    """Where the sample begins, in the uncompressed tar: whoever goes on later begins to read there."""
    size: int
    mtime_ns: int
    data: bytes = b""
    reason: str = ""
    """Why it cannot be used, if it cannot."""
    left_out: int = 0
    """Further images of the sample."""


class DamagedTarError(DataError):
    """From some place on a tar cannot be read."""


def is_tar(name: str) -> bool:
    return name.lower().split("?")[0].endswith(ENDINGS)


def read_samples(file: IO[bytes], start: int = 0) -> Iterator[Sample]:
    """Its images, in the order in which they lie there.

    Args:
        file: read from its beginning, or from ``start`` on where it can be moved there.
        start: :attr:`Sample.offset` of the first sample that is wanted.

    Raises:
        DamagedTarError: it cannot be read on from here; what came before is good.
        OSError: the file cannot be read.
    """
    base = _moved(file, start)
    sample: Sample | None = None
    key = ""  # of the sample that the last member belongs to, image or not
    damage: DamagedTarError | None = None
    members = _members(file)
    while True:
        try:
            member, archive = next(members)
            offset = base + member.offset
            of, ending = _split(member.name)
            if not of or not (member.isfile() or member.islnk() or member.issym()) or offset < start:
                continue
            if of != key:
                if sample is not None:
                    yield sample
                sample, key, begun = None, of, offset
            if f".{ending.rpartition('.')[2].lower()}" not in SUFFIXES:
                continue
            if sample is None or ("." not in ending and "." in _split(sample.name)[1]):
                sample = _sample(archive, member, key, begun, 0 if sample is None else sample.left_out + 1)
            else:
                sample.left_out += 1
        except StopIteration:
            break
        except DamagedTarError as error:
            damage = error
            break
    if sample is not None:
        yield sample
    if damage is not None:
        raise damage


def _sample(archive: tarfile.TarFile, member: tarfile.TarInfo, key: str, offset: int, left_out: int) -> Sample:
    sample = Sample(key, member.name, offset, member.size, int(member.mtime * 1e9), left_out=left_out)
    if not member.isfile():
        sample.reason = "is a link, which is not followed; pack what it leads to: tar --dereference --hard-dereference"
        return sample
    limit = DEFAULT_LIMITS.max_bytes
    if member.size > limit:
        sample.reason = f"has {member.size / 2**20:.1f} MiB, more than the limit of {limit / 2**20:g} MiB"
        return sample
    with _damage():
        content = archive.extractfile(member)
        sample.data = content.read() if content is not None else b""
    if len(sample.data) < member.size:
        raise DamagedTarError("it ends in the middle of an image")
    return sample


def _split(name: str) -> tuple[str, str]:
    """Key and ending of a member; no key for what is hidden or has no ending."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, dot, ending = last.partition(".")
    hidden = not stem or any(part.startswith(".") for part in folder.split("/"))
    return ("", "") if hidden or not dot else (f"{folder}{slash}{stem}", ending)


def _moved(file: IO[bytes], start: int) -> int:
    """Moves to where reading begins: to the first byte of a compressed tar, or of one that cannot be moved in."""
    if not start:
        return 0
    try:
        file.seek(start)
        file.seek(0)
    except (ValueError, OSError, NotImplementedError):  # a stream, which may say that it is seekable
        return 0
    compressed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))
    file.seek(0 if compressed else start)
    return 0 if compressed else start


def _members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    with _damage():
        archive = tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header)  # noqa: SIM115
    with archive:
        while True:
            with _damage():
                member = archive.next()
                archive.members = []  # type: ignore[attr-defined] # which would grow with the tar
            if member is None:
                return
            yield member, archive


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> _Header:
        """tarfile takes a damaged header, and the lack of an end, for the end of the archive."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header where one belongs ({error})") from error


class _damage:  # noqa: N801 - used like a function
    """What a damaged tar raises becomes DamagedTarError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)):
            raise DamagedTarError(f"the tar is damaged from here on: {error}") from error
