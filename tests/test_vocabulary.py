import pytest

from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, read_names, read_vocabulary


def test_seen_labels_come_first():
    vocabulary = LabelVocabulary(("cat", " dog "), ("black cat",))
    assert vocabulary.names == ("cat", "dog", "black cat")
    assert vocabulary.names[vocabulary.seen_slice] == vocabulary.seen
    assert vocabulary.names[vocabulary.unseen_slice] == vocabulary.unseen
    assert LabelVocabulary.from_any(vocabulary.to_dict()) == vocabulary
    assert LabelVocabulary.from_any(["cat"]).unseen == ()


def test_a_label_cannot_be_both_seen_and_unseen():
    with pytest.raises(UserError, match="'Cat' .* 'cat' differ only in case or blanks"):
        LabelVocabulary(("cat",), ("Cat",))


def test_names_are_read_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffcat\r\n\r\nred circle \nRoß\n", encoding="utf-8")
    assert read_names(path) == ("cat", "red circle", "Roß")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the list is empty"),
        (b"cat\ncat\n", "'cat' .* is repeated"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"names\.txt: .*{message}"):
        read_names(path)
    with pytest.raises(UserError, match=r"none\.txt: cannot read the label file"):
        read_names(tmp_path / "none.txt")


def test_real_label_lists(golden):
    from conftest import SHARED

    tags = read_names(SHARED / "data" / "nuswide_tags1k.txt")
    concepts = read_names(SHARED / "data" / "nuswide_unseen81.txt")
    vocabulary = LabelVocabulary(tuple(t for t in tags if t not in concepts), concepts)
    assert (len(vocabulary.seen), len(vocabulary.unseen)) == (925, 81)


def test_labels_that_share_a_name_are_told_apart_by_id_and_keep_their_text():
    name_of = {"/m/1": "Bank", "/m/2": "cat", "/m/3": "bank", "/m/4": "dog"}
    vocabulary = LabelVocabulary.from_ids(["/m/1", "/m/2"], ["/m/3", "/m/4"], name_of)
    assert vocabulary.names == ("Bank (/m/1)", "cat", "bank (/m/3)", "dog")
    assert vocabulary.texts == ("Bank", "cat", "bank", "dog")
    assert vocabulary.seen_only() == LabelVocabulary(("Bank (/m/1)", "cat"), (), ("Bank", "cat"))
    assert LabelVocabulary.from_any(vocabulary.to_dict()) == vocabulary
    assert "texts" not in LabelVocabulary(("a",)).to_dict()
    for texts in (("one",), ("one", " ")):
        with pytest.raises(UserError, match="one text is needed per label"):
            LabelVocabulary(("a", "b"), (), texts)


def test_a_vocabulary_is_read_from_names_or_from_ids_and_names(tmp_path):
    text, table, single = (tmp_path / name for name in ("names.txt", "labels.csv", "single.CSV"))
    text.write_text("id,name\ncat, black\n")
    assert read_vocabulary(text) == LabelVocabulary(("id,name", "cat, black"))
    rows = '/m/1,Bank\r\n/m/2,"Cat, black"\r\n\r\n/m/3, bank \r\n'
    expected = LabelVocabulary(("Bank (/m/1)", "Cat, black", "bank (/m/3)"), (), ("Bank", "Cat, black", "bank"))
    for header in ("", "id,name\r\n", "LabelName,DisplayName\r\n"):
        table.write_text("\ufeff" + header + rows, encoding="utf-8")
        assert read_vocabulary(table) == expected
    single.write_text('cat\n"dog, brown"\n')
    assert read_vocabulary(single) == LabelVocabulary(("cat", "dog, brown"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"/m/1,cat\n/m/2,dog,3\n", r", line 2: expected an id and a name.*got \['/m/2', 'dog', '3'\]"),
        (b"/m/1,cat\ndog\n", ", line 2: expected an id and a name"),
        (b"cat\n/m/1,dog\n", ", line 2: expected an id and a name"),
        (b"/m/1,cat\n/m/2,\n", ", line 2: expected an id and a name"),
        (b"/m/1,cat\n/m/1,dog\n", ", line 2: the id '/m/1' is repeated"),
        (b"cat\ncat\n", ": 'cat' .name 2. is repeated"),
        (b"", ": the list is empty"),
        (b"id,name\n", ": the list is empty"),
        (b"\xff\n", ": not UTF-8 text"),
    ],
)
def test_bad_tables_of_labels_are_named(tmp_path, content, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"labels\.csv{message}"):
        read_vocabulary(path)
    with pytest.raises(UserError, match=r"none\.csv: cannot read the label file"):
        read_vocabulary(tmp_path / "none.csv")
