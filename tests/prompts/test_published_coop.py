"""CoOp's and DualCoOp's prompts against the numbers of the published code."""

import pytest
import torch
from kin_clip import kin_clip, kin_encoder, layout

from ovml.encoders import ImageFeatures
from ovml.heads import CosineHead
from ovml.prompts import CoOpPrompt, DualCoOpPrompt


@pytest.fixture(scope="module")
def encoder(kin_golden):
    return kin_encoder(kin_golden)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_coop(kin_golden, kin_golden_json, encoder, position):
    settings = kin_golden_json["coop"]
    prompt = CoOpPrompt(settings["num_context"], None, position).bind(encoder)
    prompt.context.data.copy_(kin_golden["coop.context"])
    with torch.no_grad():
        embeds = prompt(settings["names"])
        image = ImageFeatures(kin_golden["coop.global"], torch.empty(0))
        logits = kin_clip(kin_golden).logit_scale.exp() * CosineHead()(image, embeds)
    (batches,) = prompt._names._tokens.values()
    found = layout(batches, 77)
    assert torch.equal(found, kin_golden[f"coop.{position}.layout"].long())
    assert torch.equal(found.argmax(dim=1), kin_golden["coop.token_ids"].argmax(dim=1))
    assert found.argmax(dim=1).tolist() == settings["end_token_at"]
    close(embeds, kin_golden[f"coop.{position}.embeds"])
    close(logits, kin_golden[f"coop.{position}.logits"])


def test_coop_started_as_words(kin_golden, kin_golden_json, encoder):
    prompt = CoOpPrompt(None, "a photo of a").bind(encoder)
    with torch.no_grad():
        close(prompt(kin_golden_json["coop"]["names"]), kin_golden["coop.words.embeds"])
        close(encoder(kin_golden_json["coop"]["words_text"]), kin_golden["coop.words.embeds"])
        words = CoOpPrompt(None, "a_photo_of_a").bind(encoder)
    assert torch.equal(words.context, prompt.context)


@pytest.mark.parametrize("words", [False, True], ids=["vectors", "words"])
def test_dualcoop(kin_golden, kin_golden_json, encoder, words):
    settings, prefix = kin_golden_json["dualcoop"], "dualcoop.words." if words else "dualcoop."
    if words:
        prompt = DualCoOpPrompt(None, "a photo of a", "a photo without a").bind(encoder)
    else:
        prompt = DualCoOpPrompt(len(kin_golden["dualcoop.context_present"])).bind(encoder)
        prompt.present_context.data.copy_(kin_golden["dualcoop.context_present"])
        prompt.absent_context.data.copy_(kin_golden["dualcoop.context_absent"])
    with torch.no_grad():
        pairs = prompt(settings["names"])
        if words:
            assert torch.equal(prompt.present_context, encoder.token_embedding(torch.tensor([320, 1125, 539, 320])))
            close(encoder(settings["words_absent"]), kin_golden[f"{prefix}absent_embeds"])
    for index, kind in enumerate(("absent", "present")):
        expected = kin_golden[f"{prefix}layout_{kind}"].long()
        (batches,) = prompt._names[index]._tokens.values()
        found = layout(batches, 77)
        if words:  # the layout has the words' own ids in the place of the vectors
            table = encoder.tokenize(settings[f"words_{kind}"])[0]
            assert [row[: len(ids)].tolist() for row, ids in zip(expected, table, strict=True)] == table
            found = torch.where(found < 0, expected, found)
        assert torch.equal(found, expected)
        close(pairs[:, index], kin_golden[f"{prefix}{kind}_embeds"])
