"""Adding keywords to the text of an XMP sidecar; each character that stands there stays.

The form is that of "XMP Specification Part 1: Data Model, Serialization, and Core Properties" (Adobe): a property of an
`rdf:Description` inside `rdf:RDF` holds an unordered list, `rdf:Bag`, of `rdf:li`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape

from ovml.utils.errors import UserError

MOST_DEPTH = 100
"""Elements inside each other."""
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
NAMESPACES = {"rdf": RDF, "dc": "http://purl.org/dc/elements/1.1/", "lr": "http://ns.adobe.com/lightroom/1.0/"}
SUBJECT, HIERARCHY = "dc:subject", "lr:hierarchicalSubject"
PROPERTIES = {f"{NAMESPACES['dc']} subject": SUBJECT, f"{NAMESPACES['lr']} hierarchicalSubject": HIERARCHY}
"""Prefixed name of each property, by its namespace and local name."""
ROOT, DESCRIPTION, ITEM = (f"{RDF} {name}" for name in ("RDF", "Description", "li"))
LISTS = {f"{RDF} {name}" for name in ("Bag", "Seq", "Alt")}
EMPTY = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about="" xmlns:dc="{NAMESPACES["dc"]}" xmlns:lr="{NAMESPACES["lr"]}">
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
"""A sidecar without properties."""
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
START_TAG = re.compile(rb"""<(?:[^"'>]|"[^"]*"|'[^']*')*>""")


def check_label(name: str) -> None:
    """Raise a `UserError` for a name with a character that XML, and so XMP, cannot hold."""
    if found := NOT_XML.search(name):
        raise UserError(f"label {name!r}: XMP cannot hold {found[0]!r}; rename the label")


def merge(text: str, added: Mapping[str, Sequence[str]]) -> str:
    """Add entries to the lists of a sidecar.

    Args:
        text: The sidecar.
        added: Entries of `SUBJECT` and of `HIERARCHY`; those that are there already are not added again.

    Raises:
        UserError: The text is no XMP, is declared to be in another encoding than UTF-8, has a document type (which
            could define entities without end), or nests too deeply.
    """
    content = text.encode()
    for name, entries in added.items():
        found = _parse(content)
        there = found.entries[name]
        new = {key: entry for entry in entries if (key := _comparable(entry)) not in there}
        if new:
            content = _insert(content, found, name, [escape(entry, {"\r": "&#13;"}) for entry in new.values()])
    return content.decode()


@dataclass
class _Element:
    """An element of a sidecar.

    Attributes:
        name: Namespace and local name, separated by a blank.
        tag: The name as it is written, with its prefix.
        start: Byte where its start tag begins.
        end: Byte where its end tag begins, if it has one.
        text: Text inside it and inside its children, if the element is a property or an entry of its list.
        scope: Namespaces by prefix, as they are declared inside it.
    """

    name: str
    tag: str
    start: int
    end: int = 0
    text: list[str] | None = None
    scope: dict[str | None, str] = field(default_factory=dict)

    def declared(self, *prefixes: str) -> str:
        """Attributes that declare those of our prefixes that are not declared inside the element."""
        missing = (prefix for prefix in prefixes if self.scope.get(prefix) != NAMESPACES[prefix])
        return "".join(f' xmlns:{prefix}="{NAMESPACES[prefix]}"' for prefix in missing)

    @property
    def prefix(self) -> str:
        """Such as `rdf:`."""
        prefix, colon, _ = self.tag.rpartition(":")
        return prefix + colon

    def insert(self, content: bytes, added: str) -> bytes:
        """Add text at the end of the element."""
        tag = START_TAG.match(content, self.start)
        if tag is not None and tag[0].endswith(b"/>"):
            return content[: tag.end() - 2] + f">{added}</{self.tag}>".encode() + content[tag.end() :]
        return content[: self.end] + added.encode() + content[self.end :]


@dataclass
class _Sidecar:
    """Where entries can be added: the first element of each kind. And the entries that are there."""

    rdf: _Element | None = None
    description: _Element | None = None
    properties: dict[str, _Element] = field(default_factory=dict)
    lists: dict[str, _Element] = field(default_factory=dict)
    entries: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in PROPERTIES.values()})


def _insert(content: bytes, found: _Sidecar, name: str, entries: Sequence[str]) -> bytes:
    """Insert entries into the list of a property; where there is none, with all that holds them."""
    if name in found.lists:
        listed = found.lists[name]
        item = f"{listed.prefix}li"
        return listed.insert(content, "".join(f" <{item}>{entry}</{item}>\n    " for entry in entries))
    items = "".join(f"\n     <rdf:li>{entry}</rdf:li>" for entry in entries)
    bag = f"{items}\n    </rdf:Bag>\n   "
    if name in found.properties:
        listed = found.properties[name]
        if "".join(listed.text or ()).strip():
            raise UserError(f"{name} is not a list")
        return listed.insert(content, f"\n    <rdf:Bag{listed.declared('rdf')}>{bag}")
    holder = found.description or found.rdf
    if holder is None:
        raise UserError("not XMP, for it has no rdf:RDF")
    prefix = name.split(":")[0]
    if holder is found.description:
        return holder.insert(content, f" <{name}{holder.declared(prefix, 'rdf')}>\n    <rdf:Bag>{bag}</{name}>\n  ")
    start = f'\n  <rdf:Description{holder.declared("rdf", prefix)} rdf:about="">\n   <{name}>\n    <rdf:Bag>'
    return holder.insert(content, f"{start}{bag}</{name}>\n  </rdf:Description>\n ")


def _comparable(entry: str) -> str:
    return unicodedata.normalize("NFC", entry.strip())


def _parse(content: bytes) -> _Sidecar:
    """Find where entries can be added; see `merge` for errors."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.namespace_prefixes = True
    found, stack = _Sidecar(), list[_Element]()
    scopes: list[tuple[str | None, str]] = []

    def start(triple: str, attributes: dict[str, str]) -> None:
        element = _element(triple, parser.CurrentByteIndex)
        stack.append(element)
        if len(stack) > MOST_DEPTH:
            raise UserError(f"more than {MOST_DEPTH} elements inside each other")
        place = _place(stack)
        if place is not None and len(place) <= 2:
            element.scope = dict(scopes)
        if place == []:
            found.rdf = element
        elif place == [DESCRIPTION]:
            found.description = found.description or element
            for attribute in attributes:
                if (name := PROPERTIES.get(" ".join(attribute.split(" ")[:2]))) is not None:
                    raise UserError(f"{name} is not a list")
        elif place and place[0] == DESCRIPTION and (name := PROPERTIES.get(place[1])) is not None:
            if len(place) == 2:
                found.properties.setdefault(name, element)
                element.text = []
            elif place[2] in LISTS and len(place) == 3:
                found.lists.setdefault(name, element)
            elif place[2] in LISTS and place[3:] == [ITEM]:
                element.text = []

    def text(data: str) -> None:
        for element in stack:
            if element.text is not None:
                element.text.append(data)

    def end(_: str) -> None:
        place, element = _place(stack), stack.pop()
        element.end = parser.CurrentByteIndex
        if element.text is not None and place and len(place) == 4:
            found.entries[PROPERTIES[place[1]]].add(_comparable("".join(element.text)))

    parser.StartNamespaceDeclHandler = lambda prefix, uri: scopes.append((prefix, uri))
    parser.EndNamespaceDeclHandler = lambda _: scopes.pop()
    parser.StartDoctypeDeclHandler = _refuse_document_type
    parser.XmlDeclHandler = _check_encoding
    parser.StartElementHandler = start
    parser.CharacterDataHandler = text
    parser.EndElementHandler = end
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise UserError(f"damaged XML ({error})") from error
    return found


def _refuse_document_type(*_: object) -> None:
    raise UserError("has a document type, which XMP never needs")


def _check_encoding(version: str, encoding: str | None, standalone: int) -> None:
    if encoding is not None and encoding.lower() not in ("utf-8", "us-ascii"):
        raise UserError(f"in {encoding[:20]!r}, not in UTF-8")


def _element(triple: str, start: int) -> _Element:
    """An element, from the namespace, local name and prefix that expat gives; the first and the last may be missing."""
    parts = triple.split(" ")
    if len(parts) == 1:
        return _Element(f" {triple}", triple, start)
    uri, local, *prefix = parts
    return _Element(f"{uri} {local}", ":".join([*prefix, local]), start)


def _place(stack: Sequence[_Element]) -> list[str] | None:
    """Names of the elements from `rdf:RDF`, which is the root or inside it, to the innermost; `None` outside."""
    names = [element.name for element in stack]
    return names[names.index(ROOT) + 1 :] if ROOT in names[:2] else None
