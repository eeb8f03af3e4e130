"""Whether the library's file is whole, asked before the loader maps it: a page past the end of a file is a SIGBUS.

The build writes a digest beside the library; `setup.py` runs this file by its path for that, so it imports nothing of
the package. The digest is of what the loader takes as it is: code, constants, initial data and relocations. Names,
dynamic section, headers and debugging symbols are left out, since `strip` and what makes a library fit to travel
(auditwheel, patchelf) rewrite these after the build.

Caught: a file that ends early, wherever; any other change of what the digest covers, 99% of the bytes that are loaded
and some of each page of these. Not caught here: a smaller change of the rest, names and dynamic section, most of which
the loader or ctypes refuse (of 758 sectors of 512 bytes, zeroed in turn, one ended the process in the loader); any
change but a lost end where the digest or the section headers are gone. Formats other than 64-bit ELF are not looked
into: macOS's loader checks a file's length and its signature by itself.
"""

import hashlib
import struct

# Types of sections, of segments, and a flag, as <elf.h> numbers them.
_PROGBITS, _RELA, _NOBITS, _REL, _INIT_ARRAY, _FINI_ARRAY = 1, 4, 8, 9, 14, 15
_COVERED = {_PROGBITS, _RELA, _REL, _INIT_ARRAY, _FINI_ARRAY}
_LOAD = 1
_ALLOCATED = 2


class Damaged(Exception):
    """Says what is wrong with the file, in a line."""


def digest(library: bytes) -> str | None:
    """Of what is loaded as it was built. None for a format without one, or where the section headers are gone.

    Raises Damaged where the headers speak of more than the file holds.
    """
    if library[:5] != b"\x7fELF\x02":
        return None
    try:
        return _digest(memoryview(library), ">" if library[5] == 2 else "<")
    except (IndexError, struct.error):
        raise Damaged("its file ends within its headers") from None


def _digest(library: memoryview, order: str) -> str | None:
    # As Elf64_Ehdr, Elf64_Phdr and Elf64_Shdr lay them out.
    at = struct.unpack_from(f"{order}QQ", library, 32)
    size, segments, section_size, sections = struct.unpack_from(f"{order}HHHH", library, 54)
    for k in range(segments):
        kind, offset, length = struct.unpack_from(f"{order}I4xQ16xQ", library, at[0] + k * size)
        if kind == _LOAD:
            _within(library, offset, length)
    _within(library, at[1], sections * section_size)
    covered = []
    for k in range(sections):
        kind, flags, address, offset, length = struct.unpack_from(f"{order}4xIQQQQ", library, at[1] + k * section_size)
        if kind != _NOBITS:
            _within(library, offset, length)
        if kind in _COVERED and flags & _ALLOCATED:
            covered.append((address, offset, length))
    if not covered:
        return None
    found = hashlib.sha256()
    # patchelf sorts the section headers, but moves nothing that is covered.
    for _, offset, length in sorted(covered):
        found.update(library[offset : offset + length])
    return found.hexdigest()


def _within(library: memoryview, offset: int, length: int) -> None:
    if offset + length > len(library):
        raise Damaged(f"its file ends at {len(library)} bytes, before {offset + length}")
