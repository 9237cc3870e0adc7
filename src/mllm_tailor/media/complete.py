"""Is a recording or video whole? Compare the length that its container states with the bytes that are there.

Decoders fill up what is missing or stop early without a word, so a copy that was interrupted would be trained on as if
it were all. Nothing is decoded here: headers alone are read, and pages or frames are stepped over.

Each `end_of` returns the offset at which the content ends as stated (beyond the file: it is cut off), or None where
the container states none, as programs do that write into a pipe. Sources: RIFF/WAVE and AVI (Microsoft 1991, OpenDML
1997), EBU Tech 3306 (RF64), Sony Wave64, Apple AIFF-C and CAF, RFC 3533 (Ogg), RFC 8794 and 9559 (EBML, Matroska),
ISO/IEC 14496-12 (MP4), ISO/IEC 11172-1 and 13818-1 (MPEG program and transport streams), 11172-3 (MP3),
14496-3 (ADTS), GIF89a, Adobe FLV, Microsoft ASF.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import IO

from mllm_tailor.core.errors import DataError

UNKNOWN = 0x7FFF0000  # sizes from here on, up to 2^32 - 1, are what pipes get in place of a length
BEYOND = 1 << 62  # an end that no file reaches


def check_complete(stream: IO[bytes], name: str) -> None:
    """Leaves `stream` at its start.

    Raises:
        DataError: naming the file, when its container states more than is there.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(400)
    for matches, end_of in _FORMATS:
        if matches(head):
            end = end_of(stream, size)
            stream.seek(0)
            if end is not None and end > size:
                stated = f"{size:,} of {end:,} bytes" if end < BEYOND else "its end is missing"
                raise DataError(f"{name}: cut off ({stated}) — copy it again from its source, or save it anew")
            return
    stream.seek(0)


def at(stream: IO[bytes], offset: int, count: int) -> bytes:
    """The bytes at an offset: what is there; nothing outside of the file, wherever a damaged length points."""
    if not 0 <= offset < BEYOND:
        return b""
    stream.seek(offset)
    return stream.read(count)


def _known(length: int) -> bool:
    return not UNKNOWN <= length <= 0xFFFFFFFF


# --- Chunks: RIFF, RF64, Wave64, AIFF, CAF, AU -----------------------------------------------------------------------


def _chunks(stream: IO[bytes], start: int, size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, offset of the content, its length) of chunks with a 4-byte length, padded to even."""
    offset = start
    while len(head := at(stream, offset, 8)) == 8:
        length = int.from_bytes(head[4:], "little" if order == "little" else "big")
        yield head[:4], offset + 8, length
        offset += 8 + length + length % 2
        if offset > size:
            return


def _end_of_wave(stream: IO[bytes], size: int) -> int | None:
    magic = at(stream, 0, 4)
    long_length: int | None = None
    for chunk, offset, length in _chunks(stream, 12, size, "big" if magic == b"RIFX" else "little"):
        if chunk == b"ds64":  # RF64: the lengths that do not fit into 32 bits
            long_length = int.from_bytes(at(stream, offset + 8, 8), "little")
        if chunk == b"data":
            stated = long_length if length == 0xFFFFFFFF and long_length is not None else length
            return offset + stated if _known(stated) else None
    return BEYOND  # no sound at all


def _end_of_wave64(stream: IO[bytes], _size: int) -> int | None:
    offset = 40
    while len(head := at(stream, offset, 24)) == 24:
        length = int.from_bytes(head[16:], "little")  # the head included
        if head[:4] == b"data":
            return offset + length
        offset += max(24, length + -length % 8)
    return BEYOND


def _end_of_aiff(stream: IO[bytes], size: int) -> int | None:
    chunks = {chunk: (offset, length) for chunk, offset, length in _chunks(stream, 12, size, "big")}
    if b"SSND" not in chunks or b"COMM" not in chunks:
        return BEYOND
    offset, length = chunks[b"SSND"]
    return offset + length if _known(length) else None


def _end_of_caf(stream: IO[bytes], size: int) -> int | None:
    offset, sound = 8, False
    while len(head := at(stream, offset, 12)) == 12:
        length = int.from_bytes(head[4:], "big", signed=True)
        if length < 0:  # the last chunk may leave its length open
            return None
        sound = sound or head[:4] == b"data"
        offset += 12 + length
        if offset > size:
            return offset  # compressed sound cannot be read without the table behind it
    return None if sound else BEYOND


def _end_of_au(stream: IO[bytes], _size: int) -> int | None:
    head = at(stream, 0, 12)
    order = "big" if head[:4] == b".snd" else "little"
    start, length = (int.from_bytes(head[place : place + 4], order) for place in (4, 8))  # type: ignore[arg-type]
    return start + length if _known(length) else None


def _end_of_avi(stream: IO[bytes], size: int) -> int | None:
    """The pictures and sound of each RIFF part of an AVI; the index behind them can be rebuilt."""
    end, frames = 0, False
    for part, start, length in _chunks(stream, 0, size, "little"):
        if part != b"RIFF":
            break
        for chunk, offset, inner in _chunks(stream, start + 4, min(size, start + length), "little"):
            if chunk == b"LIST" and at(stream, offset, 4) == b"movi":
                frames = True
                end = max(end, offset + inner if _known(inner) and inner else 0)
    return end if frames else BEYOND


# --- Boxes and elements: MP4, Matroska, ASF --------------------------------------------------------------------------


def _end_of_mp4(stream: IO[bytes], size: int) -> int | None:
    offset, movie = 0, False
    while offset < size:
        head = at(stream, offset, 16)
        length = int.from_bytes(head[:4], "big")
        if len(head) < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in head[4:8]):
            return BEYOND if len(head) < 8 and any(head) else offset  # bytes behind the last box are no film
        movie = movie or head[4:8] == b"moov"
        if length == 0:  # up to the end of the file
            return None
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:
            return None
        offset += length
    return offset if movie else BEYOND


def _number(stream: IO[bytes], offset: int) -> tuple[int, int] | None:
    """(value, bytes) of an EBML length; the value is -1 where all bits are set, which leaves it open."""
    first = at(stream, offset, 1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    raw = at(stream, offset, width)
    if len(raw) < width:
        return None
    value = int.from_bytes(raw, "big") & ((1 << 7 * width) - 1)
    return (-1 if value == (1 << 7 * width) - 1 else value), width


def _end_of_matroska(stream: IO[bytes], size: int) -> int | None:
    """The segment, or, where its length is open, the element it ends with."""
    offset = 0
    while offset < size:
        first = at(stream, offset, 1)[0]
        id_width = 9 - first.bit_length() if first else 9
        number = _number(stream, offset + id_width)
        if id_width > 4 or number is None:  # half a head, zeros, or damage that the decoder will name
            return BEYOND if size - offset < 12 or not first else None
        length, width = number
        name = at(stream, offset, id_width)
        offset += id_width + width
        if name == b"\x18\x53\x80\x67" and length >= 0:
            return BEYOND if _zeros_in_segment(stream, offset, min(size, offset + length)) else offset + length
        if length < 0 and name not in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):
            return None  # only segments and clusters may leave it open
        offset += max(0, length)
    return offset


def _zeros_in_segment(stream: IO[bytes], offset: int, end: int) -> bool:
    """Whether zeros stand where an element of a segment or of its clusters must begin, as in an unfinished copy."""
    while offset < end:
        first = at(stream, offset, 1)[0]
        if not first:
            return True
        id_width = 9 - first.bit_length()
        number = _number(stream, offset + id_width)
        if id_width > 4 or number is None:
            return False  # damage that the decoder will name
        length, width = number
        inside = at(stream, offset, id_width) == b"\x1f\x43\xb6\x75"
        offset += id_width + width + (0 if inside else max(0, length))
    return False


def _end_of_asf(stream: IO[bytes], size: int) -> int | None:
    head = at(stream, 0, 1 << 16)
    place = head.find(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65")  # the file's properties
    if place < 0 or len(head) < place + 92:
        return BEYOND if size < 1 << 16 else None
    live = head[place + 88] & 1
    return None if live else int.from_bytes(head[place + 40 : place + 48], "little")


# --- Pages, packets and frames: Ogg, MP3, ADTS, TS, FLV, GIF ---------------------------------------------------------


def _end_of_ogg(stream: IO[bytes], size: int) -> int | None:
    """Every stream inside must reach the page that is marked as its last."""
    offset = 0
    open_streams: set[bytes] = set()
    while len(head := at(stream, offset, 27)) == 27 and head[:4] == b"OggS":
        lengths = stream.read(head[26])
        serial = head[14:18]
        (open_streams.discard if head[5] & 4 else open_streams.add)(serial)
        offset += 27 + head[26] + sum(lengths)
        if len(lengths) < head[26] or offset > size:
            return max(offset, size + 1)
    return BEYOND if open_streams else offset


_BITRATES = {  # (version 1, layer): kbit/s by index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)


def _mpeg_frame(head: bytes) -> int:
    """Bytes of the MPEG audio frame that begins with these four; 0 where none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    kilobits = _BITRATES[version == 3, layer][bitrate]
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    if layer == 1:
        return (12_000 * kilobits // hertz + padding) * 4
    return (72_000 if layer == 3 and version != 3 else 144_000) * kilobits // hertz + padding


def _end_of_mp3(stream: IO[bytes], size: int) -> int | None:
    """What the first frame states (Xing, Info or VBRI), else the last frame that begins."""
    offset = _behind_id3(stream)
    first = at(stream, offset, 400)
    if not _mpeg_frame(first):
        return _end_of_adts(stream, size) if first[:1] == b"\xff" else None
    mono, version_1 = first[3] >> 6 == 3, first[1] >> 3 & 3 == 3
    stated = 0  # frames
    place = 4 + ((17 if mono else 32) if version_1 else (9 if mono else 17))
    if len(first) < place + 16:
        return BEYOND
    if first[place : place + 4] in (b"Xing", b"Info"):
        flags = first[place + 7]
        if flags & 2:
            start = place + 8 + 4 * (flags & 1)
            return offset + int.from_bytes(first[start : start + 4], "big")
        if flags & 1:
            stated = int.from_bytes(first[place + 8 : place + 12], "big")
    if first[36:40] == b"VBRI":
        return offset + int.from_bytes(first[46:50], "big")
    count = 0
    while length := _mpeg_frame(at(stream, offset, 4)):
        offset += length
        count += offset <= size
    return BEYOND if count < stated or at(stream, offset, 1) == b"\xff" else offset


def _behind_id3(stream: IO[bytes]) -> int:
    offset = 0
    while (head := at(stream, offset, 10))[:3] == b"ID3" and len(head) == 10:
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        offset += 10 + length + 10 * (head[5] >> 4 & 1)
    return offset


_AMR = (12, 13, 15, 17, 19, 20, 26, 31, 5, 6, 5, 5, 0, 0, 0, 0)  # bytes behind a frame's head, by its mode
_AMR_WIDE = (17, 23, 32, 36, 40, 46, 50, 58, 60, 5, 0, 0, 0, 0, 0, 0)


def _end_of_amr(stream: IO[bytes], _size: int) -> int | None:
    wide = at(stream, 0, 9) == b"#!AMR-WB\n"
    offset = 9 if wide else 6
    while head := at(stream, offset, 1):
        offset += 1 + (_AMR_WIDE if wide else _AMR)[head[0] >> 3 & 15]
    return offset


def _end_of_adts(stream: IO[bytes], _size: int) -> int | None:
    offset = _behind_id3(stream)
    while len(head := at(stream, offset, 7)) == 7 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        offset += max(7, (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5)
    return BEYOND if head[:1] == b"\xff" and len(head) < 7 else offset


def _end_of_transport(stream: IO[bytes], size: int) -> int | None:
    length = 188 if at(stream, 0, 1) == b"G" else 192
    return -(-size // length) * length


def _end_of_program(stream: IO[bytes], size: int) -> int | None:
    """Packs, each of packets that state their length; nothing states how many. An end code is often left out."""
    offset = 0
    while offset < size:
        head = at(stream, offset, 14)
        if head[:4] == b"\0\0\1\xb9":
            return offset + 4
        if head[:4] == b"\0\0\1\xba":  # a pack of MPEG-2 (with stuffing) or of MPEG-1
            second = len(head) > 4 and head[4] >> 6 == 1
            offset += 14 + (head[13] & 7 if len(head) == 14 else 0) if second else 12
        elif head[:3] == b"\0\0\1" and len(head) >= 6:
            offset += 6 + int.from_bytes(head[4:6], "big")
        else:
            return BEYOND if b"\0\0\1".startswith(head[:3]) and any(head) else None
    return offset


def _end_of_flv(stream: IO[bytes], size: int) -> int | None:
    """Every tag is followed by its length: the last one must fit."""
    length = int.from_bytes(at(stream, size - 4, 4), "big")
    tag = at(stream, size - 4 - length, 4) if 11 <= length <= size - 13 else b""
    return (
        size
        if len(tag) == 4 and tag[0] & 31 in (8, 9, 18) and 11 + int.from_bytes(tag[1:], "big") == length
        else BEYOND
    )


def end_of_gif(stream: IO[bytes], size: int) -> int | None:
    """The last block that begins; some old programs leave out the trailer behind it."""
    flags = at(stream, 10, 1)
    offset = 13 + (3 << (flags[0] & 7) + 1 if flags and flags[0] & 128 else 0)
    while offset < size and (block := at(stream, offset, 10))[0] in (0x21, 0x2C):
        if block[0] == 0x21:
            offset += 2
        elif len(block) == 10:
            offset += 11 + (3 << (block[9] & 7) + 1 if block[9] & 128 else 0)
        else:
            return BEYOND
        while (length := at(stream, offset, 1)) != b"\0":
            if not length:
                return BEYOND
            offset += 1 + length[0]
        offset += 1
    return offset


Matches = Callable[[bytes], bool]
EndOf = Callable[[IO[bytes], int], int | None]
_FORMATS: tuple[tuple[Matches, EndOf], ...] = (
    (lambda head: head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE", _end_of_wave),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ", _end_of_avi),
    (lambda head: head[:4] == b"riff" and head[24:28] == b"wave", _end_of_wave64),
    (lambda head: head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"), _end_of_aiff),
    (lambda head: head[:4] == b"caff", _end_of_caf),
    (lambda head: head[:4] in (b".snd", b"dns."), _end_of_au),
    (lambda head: head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"), _end_of_mp4),
    (lambda head: head[:4] == b"\x1a\x45\xdf\xa3", _end_of_matroska),
    (lambda head: head[:4] == b"OggS", _end_of_ogg),
    (lambda head: head[:4] == b"\x30\x26\xb2\x75", _end_of_asf),
    (lambda head: head[:4] == b"\0\0\1\xba", _end_of_program),
    (lambda head: head[:3] == b"FLV", _end_of_flv),
    (lambda head: head[:6] == b"#!AMR\n" or head[:9] == b"#!AMR-WB\n", _end_of_amr),
    (lambda head: head[:4] == b"GIF8", end_of_gif),
    (lambda head: head[:1] == b"G" and head[188:189] == b"G", _end_of_transport),
    (lambda head: head[4:5] == b"G" and head[196:197] == b"G", _end_of_transport),
    (lambda head: len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0, _end_of_adts),
    (lambda head: head[:3] == b"ID3" or _mpeg_frame(head) > 0, _end_of_mp3),
)
