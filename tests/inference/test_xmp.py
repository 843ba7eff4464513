"""Sidecars as `ElementTree`, another reader, understands them, and the bytes of what was there before."""

import errno
import os
import re
import stat
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ovml import Tagger, UserError
from ovml.cli.main import main
from ovml.inference import xmp
from ovml.inference.xmp import NAMES, Sidecars, add_labels, sidecar, write_sidecars
from ovml.inference.xmp_text import EMPTY
from ovml.saving import load_model
from ovml.vocabulary import packaged_parents

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
PROPERTIES = {
    "subject": "{http://purl.org/dc/elements/1.1/}subject",
    "hierarchy": "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject",
}
PARENTS = {"dog": "mammal", "mammal": "animal", "cat": "mammal"}

DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   exif:DateTimeOriginal="2020:01:01 10:00:00"
   darktable:note="two&#10;lines &lt; 'one'"
   darktable:history_end="1">
   <!-- a comment -->
   <dc:subject>
    <rdf:Seq>
     <rdf:li>Sée &amp; sun</rdf:li>
     <rdf:li>cat</rdf:li>
    </rdf:Seq>
   </dc:subject>
   <darktable:history>
    <rdf:Seq/>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
DIGIKAM = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/>
<rdf:Description rdf:about="" xmlns:lr="http://ns.adobe.com/lightroom/1.0/"><lr:hierarchicalSubject><rdf:Bag>
<rdf:li>place|lake</rdf:li></rdf:Bag></lr:hierarchicalSubject></rdf:Description>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>""".replace("\n", "\r\n")
OTHER_PREFIXES = """<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:d="http://purl.org/dc/elements/1.1/"><r:Description r:about="a > b"><d:subject><r:Bag /></d:subject>
</r:Description></r:RDF>"""
NO_PREFIXES = """<RDF xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><Description><subject
 xmlns="http://purl.org/dc/elements/1.1/"><Bag xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><li>sky</li></Bag>
</subject></Description></RDF>"""
WRAPPED = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF>'
DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'
THERE = {
    "nothing": None,
    "no property": EMPTY,
    "darktable": DARKTABLE,
    "digikam": DIGIKAM,
    "other prefixes": OTHER_PREFIXES,
    "no prefixes": NO_PREFIXES,
    "empty rdf": WRAPPED.format(""),
    "rdf without end tag": WRAPPED.format("").replace("></rdf:RDF>", " />"),
    "description without end tag": WRAPPED.format("<rdf:Description/><rdf:Description/>"),
    "description that ends in >": WRAPPED.format("<rdf:Description>/></rdf:Description>"),
    "prefixes of others": WRAPPED.format(
        '<rdf:Description xmlns:dc="http://other"><dc:subject>x</dc:subject></rdf:Description>'
    ),
    "prefix of another inside": NO_PREFIXES.replace("<Description>", '<Description xmlns:rdf="http://other">'),
    "empty subject": WRAPPED.format(f"<rdf:Description {DC}><dc:subject/></rdf:Description>"),
    "subject of blanks": WRAPPED.format(f"<rdf:Description {DC}><dc:subject>  </dc:subject></rdf:Description>"),
    "other content": WRAPPED.format(f"<rdf:Description {DC}>/><dc:subject><rdf:Bag/></dc:subject></rdf:Description>"),
}


def entries(path, name):
    """Texts of a property's list."""
    root = ElementTree.parse(path).getroot()
    (rdf,) = root.iter(f"{RDF}RDF")
    found = [element for above in rdf.findall(f"{RDF}Description") for element in above.findall(PROPERTIES[name])]
    assert len(found) <= 1
    assert all(len(element) <= 1 for element in found)
    return [item.text for element in found for listed in element for item in listed.findall(f"{RDF}li")]


@pytest.mark.parametrize("there", THERE)
def test_labels_are_added_once_and_all_else_stays(tmp_path, there):
    path = tmp_path / "photo.jpg.xmp"
    before = {"subject": [], "hierarchy": []}
    if THERE[there] is not None:
        path.write_bytes(THERE[there].encode())
        before = {name: entries(path, name) for name in PROPERTIES}
    assert add_labels(path, ["dog", "cat", "a < b & c", "漢字", "dog"], PARENTS)
    new = [label for label in ("dog", "cat", "a < b & c", "漢字") if label not in before["subject"]]
    assert entries(path, "subject") == before["subject"] + new
    assert entries(path, "hierarchy") == [*before["hierarchy"], "animal|mammal|dog", "animal|mammal|cat"]
    written = path.read_bytes()
    if THERE[there] is not None:  # of what was there, no byte is lost and none has another order
        rest = iter(written.decode())
        assert all(character in rest for character in THERE[there])
    os.utime(path, (1, 1))
    assert not add_labels(path, ["cat", "dog", " dog "], PARENTS)
    assert path.stat().st_mtime == 1
    assert add_labels(path, ["sky"], PARENTS) == ("sky" not in before["subject"])
    assert entries(path, "subject") == [*before["subject"], *new, *(["sky"] if "sky" not in before["subject"] else [])]
    assert os.listdir(tmp_path) == ["photo.jpg.xmp"]


def test_what_darktable_wrote_stays_to_the_byte(tmp_path):
    path = tmp_path / "x.xmp"
    path.write_text(DARKTABLE, encoding="utf-8")
    add_labels(path, ["cat", "dog", "Se\u0301e & sun"])  # the last one in another Unicode form
    added = "     <rdf:li>dog</rdf:li>\n"
    at = DARKTABLE.index("    </rdf:Seq>\n   </dc:subject>")
    assert path.read_text("utf-8") == DARKTABLE[:at] + added + DARKTABLE[at:]


def test_a_new_sidecar_is_as_the_specification_has_it(tmp_path):
    add_labels(tmp_path / "a" / "x.xmp", ["dog"], PARENTS)
    root = ElementTree.parse(tmp_path / "a" / "x.xmp").getroot()
    assert root.tag == "{adobe:ns:meta/}xmpmeta"
    (description,) = root.findall(f"{RDF}RDF/{RDF}Description")
    assert description.attrib == {f"{RDF}about": ""}
    assert [element.tag for element in description] == list(PROPERTIES.values())
    assert [[child.tag for child in element] for element in description] == [[f"{RDF}Bag"]] * 2
    assert [item.text for item in description.iter(f"{RDF}li")] == ["dog", "animal|mammal|dog"]
    text = "".join((tmp_path / "a" / "x.xmp").read_text("utf-8").split())  # for readers that search for strings
    assert "<dc:subject><rdf:Bag><rdf:li>dog</rdf:li></rdf:Bag></dc:subject>" in text


BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>' + DARKTABLE.replace("cat", "&c;").partition("\n")[2]
EXTERNAL = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + WRAPPED.format("<a>&e;</a>")
BAD = {
    "bomb": (BOMB, "has a document type"),
    "external entity": (EXTERNAL, "has a document type"),
    "external document type": (
        '<!DOCTYPE a SYSTEM "http://localhost/a">' + EMPTY.partition("\n")[2],
        "a document type",
    ),
    "unknown entity": (WRAPPED.format("&e;"), "damaged XML"),
    "cut": (DARKTABLE[:500], "damaged XML"),
    "empty": ("", "damaged XML"),
    "text": ("cat, dog", "damaged XML"),
    "two roots": (DARKTABLE + "<a/>", "damaged XML"),
    "svg": ("<svg/>", "not XMP, for it has no rdf:RDF"),
    "deep": (WRAPPED.format("<a>" * 200 + "</a>" * 200), "more than 100 elements inside each other"),
    "simple": (WRAPPED.format(f"<rdf:Description {DC}><dc:subject>a</dc:subject></rdf:Description>"), "is not a list"),
    "attribute": (WRAPPED.format(f'<rdf:Description {DC} dc:subject="a"/>'), "dc:subject is not a list"),
    "latin-1": (DARKTABLE.replace("UTF-8", "ISO-8859-1"), "in 'ISO-8859-1', not in UTF-8"),
    "bytes": (b"\xff\xfe\xff", "not UTF-8 text"),
    "large": (DARKTABLE + " " * 5000, "larger than"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_or_hostile_sidecar_is_one_line_and_stays(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(xmp, "MOST_BYTES", 4000)
    content, message = BAD[kind]
    path = tmp_path / "x.xmp"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(UserError, match=message) as info:
        add_labels(path, ["dog"])
    assert str(info.value).startswith(f"{path}: ")
    assert len(str(info.value).splitlines()) == 1
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.xmp"]


def test_a_sidecar_that_is_no_file_or_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.xmp")
    (tmp_path / "folder.xmp").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("pipe.xmp", "folder.xmp", "file/x.xmp", "x" * 300):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: ") as info:
            add_labels(tmp_path / name, ["dog"])
        assert len(str(info.value).splitlines()) == 1

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        add_labels(tmp_path / "x.xmp", ["dog"])
    assert not (tmp_path / "x.xmp").exists()


def test_permissions_and_links_stay(tmp_path):
    path, link = tmp_path / "real.xmp", tmp_path / "link.xmp"
    path.write_text(EMPTY)
    path.chmod(0o640)
    link.symlink_to(path)
    assert add_labels(link, ["dog"])
    assert link.is_symlink()
    assert entries(path, "subject") == ["dog"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("labels", "parents", "message"),
    [
        (["a", "\x1b[2J"], {}, r"label '\\x1b\[2J': XMP cannot hold '\\x1b'"),
        (["a"], {"a": "\ud800"}, "XMP cannot hold"),
        (["a"], {"a": "b", "b": "c", "c": "a"}, "parents: 'a' is above itself"),
        (["a"], {"a": "a"}, "parents: 'a' is above itself"),
    ],
)
def test_labels_that_no_sidecar_can_hold_are_one_line_before_the_model_runs(tmp_path, labels, parents, message):
    class Never:
        def tag(self, images, on_error):
            pytest.fail("ran")

    Never.labels = labels
    with pytest.raises(UserError, match=message):
        write_sidecars(Never(), ["a.png"], parents)
    with pytest.raises(UserError, match=message):
        add_labels(tmp_path / "x.xmp", labels, parents)
    assert not os.listdir(tmp_path)


def test_text_in_a_label_is_kept(tmp_path):
    labels = ["a|b", "a\r\nb\tc", "]]>", "&amp;", "\U0001f600"]
    add_labels(tmp_path / "x.xmp", labels, dict.fromkeys(labels, "p|q"))
    assert entries(tmp_path / "x.xmp", "subject") == labels
    assert entries(tmp_path / "x.xmp", "hierarchy") == [f"p/q|{label.replace('|', '/')}" for label in labels]
    assert not add_labels(tmp_path / "x.xmp", labels, dict.fromkeys(labels, "p|q"))


@pytest.fixture
def album(tmp_path, picture):
    """A folder of two images, with a sidecar of one of them, and one that is none."""
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (folder / name).write_bytes(picture.read_bytes())
    (folder / "bad.png").write_text("no image")
    (folder / "a.png.xmp").write_text(DARKTABLE, encoding="utf-8")
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tag_writes_sidecars_and_nothing_else(album, tiny, capsys):
    before = contents(album)
    command = ["tag", str(album), "--model", tiny, "--labels", "cat,dog,sky", "--top-k", "2", "--out-format", "xmp"]
    assert main(command) == 0
    done = capsys.readouterr()
    assert done.out == ""
    assert "2 sidecars written, of 3 images; 1 with an error" in done.err
    assert f"ovml: {album}/bad.png: not an image that Pillow can read" in done.err
    after = contents(album)
    assert after.keys() - before.keys() == {"sub/b.png.xmp"}
    assert {name for name in before if before[name] != after[name]} <= {"a.png.xmp"}
    best = [tag.label for tag in Tagger(load_model(tiny), ["cat", "dog", "sky"], top_k=2).predict(album / "a.png")]
    assert entries(album / "sub" / "b.png.xmp", "subject") == best
    assert entries(album / "a.png.xmp", "subject") == ["Sée & sun", "cat", *(name for name in best if name != "cat")]
    assert main(command) == 0
    assert "0 sidecars written, of 3 images" in capsys.readouterr().err
    assert contents(album) == after


def test_a_damaged_sidecar_does_not_stop_the_others(album, tiny, capsys):
    (album / "a.png.xmp").write_text(BOMB)
    command = ["tag", str(album), "--model", tiny, "--labels", "cat,dog", "--out-format", "xmp"]
    assert main(command) == 0
    assert "a.png.xmp: has a document type, which XMP never needs; repair or remove it" in capsys.readouterr().err
    assert (album / "a.png.xmp").read_text() == BOMB
    assert sorted(entries(album / "sub" / "b.png.xmp", "subject")) == ["cat", "dog"]


@pytest.mark.parametrize("more", [[], ["--xmp-name", "photo.xmp"]])
def test_the_name_of_a_sidecar_is_chosen(picture, tiny, more):
    command = ["tag", str(picture), "--model", tiny, "--labels", "cat", "--out-format", "xmp", *more]
    assert main(command) == 0
    expected = "picture.xmp" if more else "picture.png.xmp"
    assert sorted(os.listdir(picture.parent)) == sorted(["picture.png", expected])


@pytest.mark.parametrize("vocabulary", [["--vocabulary", "everyday"], [], ["--vocabulary", "voc"]], ids=str)
def test_labels_of_the_package_have_paths(picture, tiny, vocabulary):
    command = ["tag", str(picture), "--model", tiny, *vocabulary, "--top-k", "20", "--out-format", "xmp"]
    assert main(command) == 0
    path = picture.with_name("picture.png.xmp")
    names, paths = entries(path, "subject"), entries(path, "hierarchy")
    parents = {} if "voc" in vocabulary else packaged_parents("everyday")
    assert len(names) == 20
    assert [name.split("|")[-1] for name in paths] == [name for name in names if name in parents]
    assert [name.split("|")[-2] for name in paths] == [parents[name] for name in names if name in parents]


def test_an_image_without_labels_has_no_sidecar(picture, tiny, capsys):
    command = ["tag", str(picture), "--model", tiny, "--labels", "cat", "--out-format", "xmp", "--threshold", "1e9"]
    assert main(command) == 0
    assert "0 sidecars written, of 1 images" in capsys.readouterr().err
    assert os.listdir(picture.parent) == ["picture.png"]


@pytest.mark.parametrize("more", [["--out", "tags.csv"], ["--format", "tsv"]])
def test_one_form_of_output_at_a_time(picture, tiny, more, capsys):
    assert main(["tag", str(picture), "--model", tiny, "--labels", "cat", "--out-format", "xmp", *more]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert os.listdir(picture.parent) == ["picture.png"]
    assert main(["tag", str(picture), "--model", tiny, "--labels", "cat", "--xmp-name", NAMES[1]]) == 2
    assert "--xmp-name: names the sidecars of --out-format xmp" in capsys.readouterr().err


OUTPUTS = [["--out-format", "xmp"], ["--out", "t.csv"], ["--out", "t.jsonl"], ["--out", "t.parquet"]]
OUTPUTS += [["--format", form] for form in ("table", "tsv", "jsonl")]


@pytest.mark.parametrize("output", OUTPUTS, ids=" ".join)
def test_nothing_but_unreadable_images_is_a_failure(tmp_path, tiny, monkeypatch, capsys, output):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_text("no image")
    Path("paths.txt").write_text("none.png\nhttp://localhost/a.png\n")
    command = ["tag", "a.png", "--images-file", "paths.txt", "--model", tiny, "--labels", "cat", *output]
    assert main(command) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert re.match("ovml: error: no .* could be .*, of 3; each has its reason", last)
    assert not list(tmp_path.glob("*.xmp"))


def test_nothing_but_unreadable_images_is_counted_in_python(tmp_path, tiny):
    tagger = Tagger(load_model(tiny), ["cat"])
    (tmp_path / "a.png").write_text("no image")
    seen = []
    counts = write_sidecars(tagger, [tmp_path / "a.png", b"x"], on_image=lambda *row: seen.append(row))
    assert counts == Sidecars(images=2, changed=0, errors=2)
    assert [row[0].errors for row in seen] == [1, 2]
    assert all(isinstance(error, UserError) for _, error in seen)
    with pytest.raises(UserError, match=r"a\.png: not an image"):
        tagger.predict([tmp_path / "a.png"])


def test_an_image_that_is_no_file_has_no_sidecar(picture, tiny):
    tagger, errors = Tagger(load_model(tiny), ["cat"]), []
    images = [picture.read_bytes(), picture]
    counts = write_sidecars(tagger, images, on_image=lambda _, error: errors.append(error))
    assert counts == Sidecars(images=2, changed=1, errors=1)
    assert str(errors[0]) == "image (bytes): has no folder for a sidecar; give the path of a file"
    with pytest.raises(UserError, match=r"^http://localhost/a\.png: has no folder for a sidecar"):
        sidecar("http://localhost/a.png")
    with pytest.raises(UserError, match=r"xmp_name must be one of photo\.jpg\.xmp, photo\.xmp; got 'x'"):
        write_sidecars(tagger, images, xmp_name="x")
