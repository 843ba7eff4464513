"""Pascal VOC: an XML file per image, of which the names of the objects count."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from ovml.data.own.labelled import SPLITS, ImageIndex, LabelledSet, Rows, ends_of, loose, split_of
from ovml.utils.errors import UserError, first_line
from ovml.utils.files import read_text

LISTS = {"trainval": "train"} | SPLITS
"""Names of the lists in `ImageSets/Main`, and their splits; of the lists that name an image, the last counts."""
ORDER = {name: place for place, name in enumerate(LISTS)}


def find_voc(index: ImageIndex) -> LabelledSet | None:
    """XML files of Pascal VOC, one per image; splits as `ImageSets/Main` or the folders name them.

    Objects marked `difficult` are unknown, as in VOC's own evaluation. Where there are lists, files that none names are
    left out.

    Raises:
        UserError: A file is damaged.
    """
    if index.file is not None:  # one image
        return None
    trees: dict[Path, ElementTree.Element] = {}
    damaged = []
    for file in index.files(".xml"):
        try:
            tree = ElementTree.parse(file).getroot()
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
            ends = ends_of(file)
            if b"<annotation" in ends or not ends.strip():
                reason = first_line(error) if ends.strip() else "it is empty"
                damaged.append(UserError(f"{file}: not an annotation of Pascal VOC ({reason}); export it again"))
            continue
        if tree.tag == "annotation":
            trees[file] = tree
    if damaged and trees:
        raise damaged[0]
    index.damaged += damaged
    roles, unlisted, without = _roles(index, list(trees))
    splits: dict[str, Rows] = {}
    for file, role in roles.items():
        tree = trees[file]
        objects = [(item.findtext("name", "").strip(), item.findtext("difficult", "0")) for item in tree.iter("object")]
        present = list(dict.fromkeys(label for label, difficult in objects if label and difficult.strip() != "1"))
        unknown = [label for label, _ in objects if label and label not in present]
        name = (tree.findtext("filename") or "").strip() or file.stem
        image = index.find(file.stem, file.parent, role) or index.path(name, file, role)
        splits.setdefault(role, Rows()).add(image, present, list(dict.fromkeys(unknown)))
    left_out = [f"{unlisted:,} XML files that no list of ImageSets names"] * bool(unlisted)
    left_out += [f"{without:,} names in ImageSets without an XML file"] * bool(without)
    return LabelledSet("Pascal VOC annotations", splits, left_out=", ".join(left_out)) if trees else None


def _roles(index: ImageIndex, files: list[Path]) -> tuple[dict[Path, str], int, int]:
    """The split of each XML file that counts; the number of those that no list names; and of names without a file."""
    lists = [path for path in index.files(".txt") if path.parts[-3:-1] == ("ImageSets", "Main")]
    lists = sorted((path for path in lists if path.stem.lower() in LISTS), key=lambda path: ORDER[path.stem.lower()])
    if not lists:
        parts_of = {file: file.relative_to(index.root).parts[:-1] for file in files}
        folders = {file: next(filter(None, map(split_of, parts)), "train") for file, parts in parts_of.items()}
        return folders, 0, 0
    stems = {loose(file.stem) for file in files}
    role_of: dict[str, str] = {}
    missing = set()
    for path in lists:
        lines = read_text(path, "annotation", "one image name per line").splitlines()
        for line in filter(None, map(str.strip, lines)):
            named = next((name for name in _spellings(line) if name in stems), None)
            if named is None:
                missing.add(line)
            else:
                role_of[named] = LISTS[path.stem.lower()]
    roles = {file: role_of[loose(file.stem)] for file in files if loose(file.stem) in role_of}
    return roles, len(files) - len(roles), len(missing)


def _spellings(line: str) -> list[str]:
    """What a line of a list may name: `a`, `a.jpg`, `JPEGImages/a.jpg`, each perhaps with -1, 0 or 1 after it."""
    plain = [line, re.sub(r"\s+-?[01]$", "", line)]
    last = [loose(name.replace("\\", "/")).rpartition("/")[2] for name in plain]
    return [*last, *(name.rpartition(".")[0] for name in last)]
