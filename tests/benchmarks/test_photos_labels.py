"""Labels from captions: the rule, the list, the division, and what was checked by eye."""

from collections import Counter
from pathlib import Path

import pytest
from worlds.photos.labels import checked_photographs, label_list, precision_and_recall
from worlds.photos.photographs import captions_of, load_photographs

SHARED = Path(__file__).parents[3] / "shared" / "photos" / "flickr8k"
LABELS = label_list()
here = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/photos is not here")


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    source = load_photographs(str(SHARED), str(tmp_path_factory.mktemp("cache")))
    return {split: captions_of(rows, split) for split, rows in source.splits.items()}


@pytest.mark.parametrize(
    ("caption", "lemmas"),
    [
        ("Two men ride horses .", ["two", "man", "ride", "horse"]),
        ("Women's dresses, glasses and watches", ["woman", "s", "dress", "glass", "and", "watch"]),
        ("PUPPIES on buses on a grass-covered beach", ["puppy", "on", "bus", "on", "a", "grass", "covered", "beach"]),
        ("kids play tennis across the bus", ["kid", "play", "tennis", "across", "the", "bus"]),
    ],
)
def test_words_are_put_into_the_singular(caption, lemmas):
    assert LABELS.lemmas(caption) == lemmas


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("Two children play .", {"child"}),
        ("A boy and his mother", {"boy", "child"}),
        ("A man watches a woman and people", {"man", "woman"}),
        ("A toy car on the floor", {"toy"}),
        ("A black and white dog", {"dog", "black and white dog"}),
        ("A dog that is black and brown .", {"dog"}),
        ("A black and brown dog", {"dog"}),
        ("A large brown dog runs", {"dog", "brown dog"}),
        ("A girl slides down a hill", {"girl", "child", "hill"}),
        ("A girl on the slide", {"girl", "child", "slide"}),
        ("a child swinging ; it swings", {"child"}),
        ("The man smiles at the camera", {"man"}),
        ("The man holds a camera", {"man", "camera"}),
        ("A hot dog", set()),
        ("A person in a life jacket", set()),
        ("A man in a red shirt", {"man", "shirt", "red shirt"}),
        ("A man in a red and white shirt", {"man", "shirt"}),
    ],
)
def test_a_caption_names_labels_and_those_above_them(caption, named):
    assert LABELS.named(caption) == named


def test_two_captions_must_name_a_label():
    captions = ["A dog on grass .", "A brown dog .", "An animal on the lawn", "It runs", "A ball"]
    assert set(LABELS.labels_of(captions)) == {"dog", "grass"}
    assert LABELS.labels_of(["A dog and a dog"]) == []


def test_unseen_labels_are_withheld_ones_of_the_list_without_people_and_parents():
    vocabulary = LABELS.vocabulary
    assert len(vocabulary.seen) >= 80
    assert len(vocabulary.unseen) >= 40
    assert not set(vocabulary.seen) & set(vocabulary.unseen)
    assert {"man", "woman", "child"} <= set(vocabulary.seen)
    assert "person" not in vocabulary.names
    for phrase, labels in LABELS.phrases.items():
        above = labels - {" ".join(phrase)}
        if " ".join(phrase) in vocabulary.seen:  # an unseen label above a seen one would be named in training
            assert not above & set(vocabulary.unseen), phrase


def test_every_label_is_named_by_itself_or_a_word_of_its_list():
    assert set(LABELS.vocabulary.names) == set().union(*LABELS.phrases.values())


@here
def test_each_label_has_photographs(captions):
    counts = {
        split: Counter(name for own in captions[split] for name in LABELS.labels_of(own)) for split in ("train", "test")
    }
    assert min(counts["train"][name] for name in LABELS.vocabulary.names) >= 15
    assert min(counts["test"][name] for name in LABELS.vocabulary.names) >= 3
    assert min(counts["test"][name] for name in LABELS.unseen) >= 5


@here
def test_what_was_checked_by_eye_are_the_labels_of_the_rule(captions):
    checked = checked_photographs()
    order = [(split, row) for split in ("train", "validation", "test") for row in range(len(captions[split]))]
    assert [(one.split, one.row) for one in checked] == order[::80][:100]
    for one in checked:
        assert set(LABELS.labels_of(captions[one.split][one.row])) == {*one.right, *one.wrong}
        assert not set(one.missing) & {*one.right, *one.wrong}
        assert set(one.missing) <= set(LABELS.vocabulary.names)


def test_precision_and_recall_count_the_checked_labels():
    checked = checked_photographs()
    right, wrong, missing = (sum(len(getattr(one, kind)) for one in checked) for kind in ("right", "wrong", "missing"))
    assert precision_and_recall() == (right / (right + wrong), right / (right + missing))
    dogs = [("dog" in one.right, "dog" in one.wrong, "dog" in one.missing) for one in checked]
    right, wrong, missing = map(sum, zip(*dogs, strict=True))
    assert precision_and_recall(["dog"]) == (right / (right + wrong), right / (right + missing))
