"""YAML that users wrote: loaded in bounded time, or one line."""

import re

import pytest
import yaml

from ovml.utils import yaml as checked
from ovml.utils.yaml import check_yaml, load_yaml, yaml_reason

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
GOOD = ["", "a: 1", "[a, {b: [c]}]", "a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: *x", "'1': a\nb: '1'", "a: {k: 1}\nb: {k: 2}"]


@pytest.mark.parametrize("text", GOOD)
def test_it_loads_as_yaml_does(text):
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "line 7: more than 2,000,000 values and keys, counting what aliases stand for"),
        ("a: &a [*a]", r"line 1: \*a has no anchor before it, or stands inside of its own"),
        ("&a {b: *a}", r"line 1: \*a has no anchor"),
        ("a: *b", r"line 1: \*b has no anchor"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given twice"),
        ("a: {b: {c: 1, 'c': 2}}", "the key 'c' is given twice"),
        ("a: [[{x: 1, x: 2}]]", "the key 'x' is given twice"),
        ("[" * 100_000, "line 1: more than 100 lists and mappings inside one another"),
        ("- " * 100_000, "more than 100 lists"),
        ("a: [", "line 2: did not find expected node content"),
        ("a: 2024-99-99", "month must be in 1..12"),
        (f"a: {'1' * 5000}", "Exceeds the limit"),
        ("? [a]\n: b", "line 1: found unhashable key"),
        ("a\n---\nb", "line 2: but found another document"),
        ("!!python/object/apply:os.system [echo]", "line 1: could not determine a constructor"),
        ("a: \ud800", "surrogates not allowed"),
        ("a: \x01", "control characters are not allowed"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(text, reason):
    with pytest.raises(yaml.YAMLError) as info:
        load_yaml(text)
    message = yaml_reason(info.value)
    assert "\n" not in message
    assert re.search(reason, message)


def test_values_are_counted_without_libyaml_too(monkeypatch):
    monkeypatch.setattr(checked, "_loader", lambda: yaml.SafeLoader)
    check_yaml("a: [1, 2]", most_nodes=6)
    for text in ("a: [1, 2, 3, 4, 5]", "a: &a [1, 2]\nb: *a"):
        with pytest.raises(yaml.YAMLError, match="more than 6 values"):
            check_yaml(text, most_nodes=6)
