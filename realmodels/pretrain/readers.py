"""How does a file of a package become paragraphs of prose? By its kind, which its name tells.

A reader takes the text of a file and gives plain text with blank lines between paragraphs; `realmodels.text.paragraphs`
then keeps what is prose. HTML, DocBook and GNOME's help are parsed by lxml: the standard library's parser would need
hours for the gigabytes that it reads in minutes, and stumbles over the pages that are not well-formed. Manual pages,
Perl's POD and comments need so little that a few expressions do.
"""

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Final

from lxml import etree

from realmodels.text import paragraphs

Reader = Callable[[str], str]

_DROPPED: Final = (
    "button", "code-block", "footer", "form", "head", "header", "math", "nav", "pre", "programlisting", "screen",
    "script", "select", "style", "svg", "synopsis",
)  # fmt: skip
_BLOCKS: Final = (
    "address|article|aside|blockquote|body|br|caption|center|dd|details|div|dl|dt|entry|fieldset|figcaption|figure"
    "|formalpara|glossdef|glossterm|h[1-6]|hr|item|itemizedlist|li|listitem|main|note|ol|p|para|section|simpara"
    "|summary|table|tbody|td|term|th|thead|title|tip|tr|ul|warning"
)
_BOUNDARY: Final = re.compile(rf"</?({_BLOCKS})\b", re.IGNORECASE)


def markup(text: str) -> str:
    """HTML, DocBook or Mallard: blank lines between blocks; code, menus and forms are left out."""
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    root = etree.fromstring(_BOUNDARY.sub(r"\n\n\g<0>", text).encode(), parser) if text.strip() else None
    if root is None:
        return ""
    etree.strip_elements(root, *_DROPPED, with_tail=False)
    return etree.tostring(root, method="text", encoding="unicode")


_ESCAPES: Final = {r"\-": "-", r"\(aq": "'", r"\(cq": "'", r"\(oq": "'", r"\e": "\\", r"\ ": " "}


def manual_page(text: str) -> str:
    """A page in the man macros: what they mark stays, they go. One in the mdoc macros has nothing to read."""
    if re.search(r"^\.Dd", text, re.MULTILINE):
        return ""
    text = re.sub(r"^\. *(nf|EX)\b(?s:.*?)^\. *(fi|EE)\b.*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r'^[.\'] *\\".*\n|\\".*$', "", text, flags=re.MULTILINE)
    text = re.sub(r"^\. *(B|I|SM|SB)\b *", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"^\. *(?:BR|RB|BI|IB|IR|RI)\b(.*)$", lambda line: _joined(line[1]), text, flags=re.MULTILINE
    )
    text = re.sub(r"^[.'].*$", "\n", text, flags=re.MULTILINE)  # the others begin something new
    text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\s[-+]?\d|\\[&|^/,cd:%]", "", text)
    for escape, meant in _ESCAPES.items():
        text = text.replace(escape, meant)
    return re.sub(r"\\(\(..|\[\w*\]|\*(\(..|.))", " ", text)


def _joined(arguments: str) -> str:
    """What a macro of alternating fonts shows: its arguments without what is between them."""
    return "".join(quoted or word for quoted, word in re.findall(r'"([^"]*)"?|(\S+)', arguments))


def pod(text: str) -> str:
    """Perl's documentation, alone or within a module."""
    blocks = re.findall(r"^=(?!cut)\w+.*?(?=^=cut|\Z)", text, re.MULTILINE | re.DOTALL)
    # What is indented is code.
    found = re.sub(r"^([ \t].*|=\w+)", "\n", "\n\n".join(blocks), flags=re.MULTILINE)
    for _ in range(3):
        found = re.sub(r"\b[A-Z]<+\s?(?:[^<>|]*\|)?([^<>]*?)\s?>+", r"\1", found)
    return found


def comments(text: str) -> str:
    """C, C++, Go, Java, JavaScript, Rust: comments that stand alone on their lines, without marks and HTML tags."""
    blocks = re.findall(r"^[ \t]*/\*(?s:.*?)\*/|(?:^[ \t]*//.*\n)+", text, re.MULTILINE)
    found = re.sub(r"^[ \t]*(/\*+!?<?|//+[!/<]*|\*+/|\*+)", "", "\n\n".join(blocks), flags=re.MULTILINE)
    found = found.replace("*/", "")
    found = re.sub(r"(?s)<pre>.*?</pre>|```.*?```", "\n\n", found)
    found = re.sub(
        r"</?(p|li|ul|ol|h\d|br)\b[^>\n]*>|^[ \t]*[@\\](?!link)\w+(?:\[\w+\])?",
        "\n\n",
        found,
        flags=re.MULTILINE,
    )
    found = re.sub(r"</?[a-zA-Z][^<>\n]*>", "", found)
    return re.sub(r"\{@\w+ ([^{}]*)\}", r"\1", found)


def info(text: str) -> str:
    """GNU Info: the line that heads each node goes."""
    return re.sub(r"\x1f\n.*", "\n", text)


def word_senses(text: str) -> str:
    """WordNet's data: a paragraph for each sense, the words and what they mean."""
    found = []
    for line in text.splitlines():
        fields, _, gloss = line.partition(" | ")
        parts = fields.split(" ")
        if gloss and len(parts) > 4:
            words = parts[4 : 4 + 2 * int(parts[3], 16) : 2]
            found.append(f"{', '.join(words).replace('_', ' ')}: {gloss}")
    return "\n\n".join(found)


def entries(text: str) -> str:
    """A database of dictd: what is not indented begins an entry, which becomes one paragraph."""
    without_sources = re.sub(r"^\s*\[[^\]\n]*\]\s*$", "", text, flags=re.MULTILINE)
    return re.sub(r"^(?=\S)", "\n", re.sub(r"\n\s*\n(?=[ \t])", "\n", without_sources), flags=re.MULTILINE)


def sayings(text: str) -> str:
    """A database of fortune: a percent sign is between them."""
    return re.sub(r"^%$", "\n", text, flags=re.MULTILINE)


def dialogue(text: str) -> str:
    """Wesnoth's campaigns: what their people say."""
    return "\n\n".join(re.findall(r'_ *"([^"]*)"', text))


def plain(text: str) -> str:
    return text


def r_strings(content: bytes) -> bytes:
    """The strings of an R package's data, a line each. Four bytes are before each zlib stream of R's serialisation."""
    found: list[bytes] = []
    while content:
        stream = zlib.decompressobj()
        data, content = stream.decompress(content[4:]), stream.unused_data
        marks = re.finditer(rb"\x00\x04\x00\x09(.{4})", data, re.DOTALL)  # a string, and its length
        found += (data[mark.end() : mark.end() + int.from_bytes(mark[1], "big")] for mark in marks)
    return b"\n".join(found)


_SUFFIXES: Final[Mapping[Reader, str]] = {
    markup: "html htm xhtml docbook page",
    comments: "c h cc cpp cxx hh hpp hxx ipp ixx go java js rs scala",
    pod: "pod pm pl",
    plain: "txt md markdown rst texi texinfo adoc asciidoc org",
    info: "info",
    entries: "dict",
    manual_page: "1 2 3 4 5 6 7 8 9 3perl 3pm 3erl 3tcl 3tk 3ncurses 3ssl 1ssl 5ssl 7ssl 7gcc",
}
_READERS: Final = {suffix: reader for reader, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_PACKED: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    ".gz": gzip.decompress,
    ".dz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".rdb": r_strings,
}
# Listings of code, lists of links, and what is no manual: names of files and folders, in lower case.
_LEFT_OUT: Final = re.compile(
    r"_source\.html$|-members(\.x?html)?$|(^|/)(class-use|src-html|search|_sources|_modules|_static|copyright|changelog.*"
    r"|changes.*|genindex.*|py-modindex.*|index-(all|files|\d+)\..*|allclasses.*|testsuite|fixtures|vendor)($|/)"
)
_OTHER_LANGUAGE: Final = re.compile(
    r"[/._-](ar|ast|bg|bn|bs|ca|cs|da|de|el|eo|es|et|eu|fa|fi|fr|gl|gu|he|hi|hr|hu|id|it|ja|ka|km|ko|lt|lv|mk|ml|nb"
    r"|nl|nn|pl|pt|pt[-_]br|ro|ru|sk|sl|sr|sv|ta|th|tr|uk|vi|zh|zh[-_]\w\w|zh[-_]han[st])[/._]"
)
_ENGLISH: Final = re.compile(r"\b(the|of|and|to|is|for|that|with|this|be|are|it|from|by|or|on|as|not|if)\b")
_MIN_ENGLISH_SHARE: Final = 0.1  # of the words; other languages have less than a twentieth


def reader_of(path: str) -> Reader | None:
    """What reads a file, by its path in the package without what it is packed with; None if nothing does."""
    lower = path.lower()
    if _LEFT_OUT.search(lower) or _OTHER_LANGUAGE.search(lower):
        return None
    name = PurePosixPath(lower)
    if "wesnoth" in name.parts and name.suffix == ".cfg":
        return dialogue
    if "wordnet" in name.parts and name.name.startswith("data."):
        return word_senses
    if "fortunes" in name.parts and not name.suffix:
        return sayings
    if name.parts[-2:] == ("data", "rdata"):
        return plain
    if re.search(r"\.info(-\d+)?$", name.name):
        return info
    return _READERS.get(name.suffix[1:])


def is_english(text: str) -> bool:
    lower = text.lower()
    return len(_ENGLISH.findall(lower)) >= _MIN_ENGLISH_SHARE * len(re.findall(r"[a-z]+", lower))


def reads(path: str) -> bool:
    """True if a reader is there for the file."""
    return reader_of(_bare(path)) is not None


def _bare(path: str) -> str:
    return path.rpartition(".")[0] if PurePosixPath(path).suffix in _PACKED else path


def prose_of(path: str, content: bytes) -> list[str]:
    """The paragraphs of English prose of one file that `reads` accepts, by its path in the package."""
    reader, text = reader_of(_bare(path)), _text(path, content)
    if reader is None or text is None:
        return []
    kept = [each for each in paragraphs(reader(text)) if "\ufffd" not in each and each.isprintable()]
    return kept if is_english("\n".join(kept)) else []


def _text(path: str, content: bytes) -> str | None:
    """U+FFFD stands for what is not UTF-8; None if the file is damaged."""
    try:
        return _PACKED.get(PurePosixPath(path).suffix, bytes)(content).decode("utf-8", errors="replace")
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        return None
