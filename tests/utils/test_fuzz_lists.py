"""Whatever a file holds, it is a list of names, YAML, or one line that says why not."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ovml import UserError
from ovml.utils.lists import LABELS, PATHS, NameList, read_list
from ovml.utils.yaml import load_yaml, yaml_reason

FUZZ = settings(max_examples=100, deadline=None)
MARKS = [*"\"',;:\t\n\r[]{}&*!|>-#%@`?<\\=~^", "\ufeff", "\0", "\u2028", "\x85", "\u0301", "\u200b", "\x1b", "name"]
"""What separates, quotes, or starts something in one of the forms."""
TEXT = st.lists(st.sampled_from(MARKS) | st.text(max_size=3), max_size=30).map("".join)
BYTES = st.binary(max_size=60) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
ENCODED = st.tuples(TEXT, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])).map(
    lambda pair: pair[0].encode(pair[1], "replace")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@FUZZ
@example(content=b"[" * 5000, suffix=".json", kind=LABELS)
@example(content=b'"\n"\n\n,', suffix=".csv", kind=PATHS)
@given(
    content=BYTES | ENCODED,
    suffix=st.sampled_from([".txt", ".csv", ".tsv", ".json", ".yaml"]),
    kind=st.sampled_from([LABELS, PATHS]),
)
def test_a_file_is_a_list_of_names_or_one_line(folder, content, suffix, kind):
    path = folder / f"a{suffix}"
    path.write_bytes(content)
    try:
        found, message = read_list(path, kind), str(path)
    except UserError as error:
        found, message = NameList([], None, ""), str(error)
    assert all(isinstance(name, str) for name in found.names)
    assert found.ids is None or len(found.ids) == len(found.names)
    assert str(path) in message
    assert len(message.splitlines()) == 1


@FUZZ
@example(text="&a [*a]")
@example(text="a: 1\na: 2")
@given(text=TEXT)
def test_yaml_is_what_the_library_loads_or_one_line(text):
    try:
        found = load_yaml(text)
    except yaml.YAMLError as error:
        message = yaml_reason(error)
    else:
        message = "loaded"
        assert repr(found) == repr(yaml.load(text, yaml.CSafeLoader))
    assert len(message.splitlines()) == 1
