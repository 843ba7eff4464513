import copy
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from ovml import LabelVocabulary, OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.heads import GlobalHead, LocalHead
from ovml.losses import RankingLoss, ranking_loss
from ovml.prompts import ContextPrompt, TemplatePrompt
from ovml.saving.checkpoint import newest_checkpoint
from ovml.training.objective import scored_labels

VOCABULARY = LabelVocabulary(("cat", "dog", "red car", "sky"), ("black cat", "sea", "sun", "tree", "house"))
STAGES = (VisionStage(epochs=1, warmup_epochs=0), PromptStage(epochs=1))


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return OVMultiLabelClassifier(tiny, VOCABULARY, head=LocalHead(top_k=2), stages=list(STAGES)).eval()


def batch(size=4, present=True):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (size, len(VOCABULARY)), generator=generator).to(torch.int8)
    labels[:, 0] = int(present)
    return {
        "pixel_values": torch.randn(size, 3, 48, 48, generator=generator),
        "labels": labels,
        "image_id": ["x"] * size,
    }


def trained(model):
    """Attach what `training_step` needs of a trainer."""
    model.trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    model.log = lambda *args, **kwargs: None
    return model.train()


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def test_each_stage_learns_its_own_parameters_and_no_others(model):
    last_blocks = (
        "model.image_encoder.vision_model.encoder.layers.1.",
        "model.image_encoder.vision_model.encoder.layers.2.",
    )
    ends = ("model.image_encoder.vision_model.post_layernorm.", "model.image_encoder.visual_projection.")
    expected = {
        "vision": {n for n, _ in model.named_parameters() if n.startswith((*last_blocks, *ends))},
        "prompt": {"model.prompt.context"},
    }
    assert len(expected["vision"]) == 2 * 16 + 3
    for stage in STAGES:
        model.start_stage(stage)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == expected[stage.name]
        before = copy.deepcopy(model.state_dict())
        trained(model)
        model.training_step(batch(), 0).backward()
        torch.optim.SGD(stage.parameter_groups(model.learning_parts), lr=0.1).step()
        changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
        # A key's bias shifts a whole row of the attention, which the softmax takes out again: its gradient is 0.
        untouched = {n for n in expected[stage.name] if n.endswith("k_proj.bias")}
        assert expected[stage.name] - untouched <= changed <= expected[stage.name]


def test_shared_trunk_gives_the_numbers_of_a_separate_teacher(model, tiny):
    """Loss and gradients equal those of the plain way: a full student beside a full frozen CLIP."""
    plain_student, plain_teacher = copy.deepcopy(model.model.image_encoder), load_clip(tiny)
    with torch.no_grad():  # as after some training: the student differs from its teacher
        for encoder in (model.model.image_encoder, plain_student):
            encoder.visual_projection.weight.mul_(1.1)
    data = batch()
    loss = trained(model).training_step(data, 0)
    loss.backward()

    features = plain_student(data["pixel_values"])
    with torch.no_grad():
        target = plain_teacher.get_image_features(data["pixel_values"]).pooler_output
    scores = model.model.head(features, model.model.embed_labels(VOCABULARY.seen))
    plain = ranking_loss(scores, data["labels"][:, :4]) + (features.global_embeds - target).abs().mean()
    plain.backward()
    torch.testing.assert_close(loss, plain, atol=1e-6, rtol=0)
    theirs = dict(plain_student.named_parameters())
    for name, parameter in model.model.image_encoder.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-6, rtol=1e-4)


def test_distillation_can_be_turned_off_and_ends_with_stage_one(model):
    trained(model)
    data = batch()
    with_distillation = model.training_step(data, 0)
    torch.nn.init.zeros_(model.teacher.visual_projection.weight)
    assert model.training_step(data, 0) != with_distillation
    model.objective.distillation_weight = 0
    scores = model.model.head(
        model.model.image_encoder(data["pixel_values"]), model.model.embed_labels(VOCABULARY.seen)
    )
    torch.testing.assert_close(model.training_step(data, 0), ranking_loss(scores, data["labels"][:, :4]))
    model.objective.distillation_weight = 1
    model.start_stage(STAGES[1])
    torch.testing.assert_close(model.training_step(data, 0), ranking_loss(scores, data["labels"][:, :4]))


def test_images_without_a_present_seen_label_are_left_out(model):
    trained(model)
    data = batch()
    data["labels"][1:3, :4] = torch.tensor([0, -1, 0, 0], dtype=torch.int8)
    data["labels"][1:3, 4:] = 1  # present unseen labels do not count
    kept = {k: [v[0], v[3]] if isinstance(v, list) else v[[0, 3]] for k, v in data.items()}
    torch.testing.assert_close(model.training_step(data, 0), model.training_step(kept, 0))


def test_a_batch_without_any_label_is_skipped(model, monkeypatch):
    data = batch()
    data["labels"].zero_()
    assert trained(model).training_step(data, 0) is None
    monkeypatch.setattr("ovml.training.objective.world_size", lambda: 2)
    loss = model.training_step(data, 0)
    loss.backward()
    assert loss == 0
    assert not any(p.grad.any() for p in model.parameters() if p.requires_grad)


class Infinite(RankingLoss):
    """A loss that diverges at once."""

    def forward(self, logits, targets):
        return super().forward(logits, targets) * torch.inf


def rows(present, size=8):
    labels = torch.zeros(size, len(VOCABULARY), dtype=torch.int8)
    labels[:present, 0] = 1
    pixels = torch.randn(size, 3, 48, 48)
    return [{"pixel_values": x, "labels": y, "image_id": "x"} for x, y in zip(pixels, labels, strict=True)]


def fit(model, data, batch_size=2, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(**quiet, enable_model_summary=False, **options)
    trainer.fit(model.train(), DataLoader(data, batch_size))
    return trainer


@pytest.mark.parametrize("diverges", ["loss", "weights"])
def test_a_training_that_diverges_stops_with_its_step(tiny, diverges):
    loss = Infinite() if diverges == "loss" else None
    stages = [VisionStage(epochs=1, warmup_epochs=0, lr=1e-3 if diverges == "loss" else 1e30)]
    model = OVMultiLabelClassifier(tiny, VOCABULARY, loss=loss, stages=stages)
    step = {"loss": 0, "weights": 1}[diverges]
    with pytest.raises(UserError, match=rf"stage 'vision', step {step}: the loss is (inf|nan).* lower lr"):
        fit(model, rows(8), max_epochs=1)


def test_training_images_without_labels_are_counted(model):
    with pytest.raises(UserError, match="stage 'vision': none of 8 training images has a present seen label"):
        fit(model, rows(0), max_epochs=1)
    with pytest.warns(UserWarning, match="stage 'vision': 5 of 8 training images have no present seen label"):
        fit(model, rows(3), max_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*present seen label")
        fit(model, rows(4), max_epochs=2)


@pytest.mark.parametrize(
    ("options", "peak"),
    [
        ({"max_epochs": 2}, 4),
        ({"max_epochs": 9, "max_steps": 8}, 4),
        ({"max_epochs": -1, "max_steps": 8}, 4),
        ({"max_epochs": None, "max_steps": 16}, 4),
    ],
)
def test_the_warm_up_has_its_epochs_however_the_length_is_given(tiny, options, peak):
    stages = [VisionStage(epochs=8, warmup_epochs=1)]
    model, rates = OVMultiLabelClassifier(tiny, VOCABULARY, stages=stages), []
    model.on_train_batch_start = lambda *_: rates.append(model.trainer.optimizers[0].param_groups[-1]["lr"])
    fit(model, rows(8), **options)
    assert rates.index(max(rates)) == peak
    assert max(rates) == pytest.approx(stages[0].lr)


def test_a_training_without_an_end_is_refused(model):
    with pytest.raises(UserError, match="give max_steps"):
        fit(model, rows(8), max_epochs=-1, max_time="00:00:01:00")


def test_a_training_on_data_without_a_length_has_steps(model):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(rows(8))

    with pytest.raises(UserError, match="give max_steps, or max_epochs and training data of known length"):
        fit(model, Stream(), max_epochs=2)
    assert fit(model, Stream(), max_epochs=2, max_steps=5).global_step == 5


def test_a_prediction_of_nan_is_an_error(model):
    next(model.model.image_encoder.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match="scores: NaN"):
        model.predict_step(batch(), 0)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is a folder; give a checkpoint in it, or use from_pretrained"):
        OVMultiLabelClassifier.from_checkpoint(tmp_path)


def test_a_stage_is_started_by_its_name_or_its_position(model):
    for which, name in (("prompt", "prompt"), (0, "vision"), (1, "prompt"), (model.stages[0], "vision")):
        model.start_stage(which)
        assert model.stage.name == name
    for which in ("text", 2, -1):
        with pytest.raises(UserError, match=f"stage: there is no {which!r}; it is one of vision, prompt, or 0 to 1"):
            model.start_stage(which)


def test_two_stages_of_one_name_are_refused(tiny):
    with pytest.raises(UserError, match="stages: two are named 'prompt'"):
        OVMultiLabelClassifier(tiny, VOCABULARY, stages=[PromptStage(), VisionStage(), PromptStage(epochs=1)])


@pytest.mark.parametrize("order", [("vision", "prompt"), ("prompt", "vision")])
def test_the_stages_order_decides_which_checkpoint_is_newest(tiny, tmp_path, order):
    made = {"vision": VisionStage(epochs=1, warmup_epochs=0), "prompt": PromptStage(epochs=1)}
    model = OVMultiLabelClassifier(tiny, VOCABULARY, stages=[made[name] for name in order])
    for name in ("prompt", "vision"):  # as a copied folder has them
        save(model, tmp_path / name / "last.ckpt")
    save(model, tmp_path / "zero" / "last.ckpt")  # of no stage of the run
    assert newest_checkpoint(tmp_path) == tmp_path / order[-1] / "last.ckpt"
    (tmp_path / order[-1] / "last.ckpt").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / order[0] / "last.ckpt"


def test_unseen_labels_do_not_reach_the_loss(model):
    trained(model)
    data = batch()
    loss = model.training_step(data, 0)
    data["labels"][:, 4:] = 1 - data["labels"][:, 4:]
    assert torch.equal(loss, model.training_step(data, 0))


def test_zero_shot_is_transformers_clip(model, tiny):
    torch.nn.init.zeros_(model.model.image_encoder.visual_projection.weight)  # what was learned must not matter
    torch.nn.init.zeros_(model.model.prompt.context)
    clip, tokenizer, pixels = load_clip(tiny), load_tokenizer(tiny), batch()["pixel_values"]
    texts = [f"There is a {name} in the scene" for name in VOCABULARY]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = clip(**tokens, pixel_values=pixels).logits_per_image / clip.logit_scale.exp()
        ours = model.zero_shot()(pixels)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_zero_shot_keeps_the_template_of_the_prompt(tiny):
    model = OVMultiLabelClassifier(tiny, VOCABULARY, prompt=ContextPrompt("a {} here"))
    torch.nn.init.zeros_(model.model.prompt.context)
    expected = TemplatePrompt("a {} here").bind(model.model.prompt.text_encoder)(VOCABULARY)
    assert torch.equal(model.zero_shot().model.embed_labels(), expected)


def test_evaluation_scores_each_protocol_on_its_own_labels(model):
    data = batch(size=6)
    with torch.no_grad():
        model.validation_step(data, 0)
        features = model.model.image_encoder(data["pixel_values"])
        unseen = model.model.head(features, model.model.embed_labels(VOCABULARY.unseen))
    results = model.evaluation.compute()
    assert {name.split("/")[0] for name in results} == {"zsl", "gzsl", "seen"}
    measured = {name for name in results if "P@" in name}  # there are but four seen labels
    assert measured == {"zsl/P@3", "zsl/P@5", "gzsl/P@3", "gzsl/P@5", "seen/P@3"}
    hits = data["labels"][:, 4:].gather(1, unseen.topk(3).indices).sum()
    torch.testing.assert_close(results["zsl/P@3"], hits / 18)


def test_labels_are_embedded_once_until_the_prompt_changes(model):
    calls = []
    embed = model.model.prompt.embed
    model.model.prompt.embed = lambda names: calls.append(names) or embed(names)
    for _ in range(3):
        model.predict_labels(picture(0), labels=["cat", "dog"])
    assert len(calls) == 1
    first = model.model.embed_labels(["cat", "dog"])
    with torch.no_grad():
        model.model.prompt.context[:, 0].add_(1.0)
    assert not torch.allclose(model.model.embed_labels(["cat", "dog"]), first)
    assert len(calls) == 2


def test_predict_labels(model, tmp_path):
    image = picture(0)
    ranked = model.predict_labels(image, labels=["cat", "zebra", "red zebra"], top_k=2)
    assert len(ranked) == 2
    assert ranked[0].score >= ranked[1].score
    assert {tag.label for tag in model.predict_labels(image, top_k=None)} == set(VOCABULARY)
    image.save(tmp_path / "x.png")
    many = model.predict_labels([image, tmp_path / "x.png", np.asarray(image)], batch_size=2, labels=["cat", "zebra"])
    one = model.predict_labels(str(tmp_path / "x.png"), labels=["cat", "zebra"])
    for tags in many:
        assert [t.label for t in tags] == [t.label for t in one]
        np.testing.assert_allclose([t.score for t in tags], [t.score for t in one], atol=1e-6)
    assert model.predict_labels([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": []}, "the list is empty"),
        ({"labels": ["cat", "CAT "]}, "differ only in case or blanks"),
        ({"top_k": 0}, "top_k must be at least 1"),
    ],
)
def test_bad_predictions_are_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model.predict_labels(picture(0), **arguments)


def test_a_model_without_vocabulary_scores_given_labels_only(tiny):
    model = OVMultiLabelClassifier(tiny)
    assert len(model.predict_labels(picture(0), labels=["cat", "dog"])) == 2
    with pytest.raises(UserError, match="pass a list of label names"):
        model.predict_labels(picture(0))


def test_a_clip_model_can_be_given_with_its_tokenizer(tiny):
    model = OVMultiLabelClassifier(load_clip(tiny), ["cat", "dog"], tokenizer=load_tokenizer(tiny))
    pixels = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(model(pixels), OVMultiLabelClassifier(tiny, ["cat", "dog"])(pixels))
    with pytest.raises(UserError, match="tokenizer: needed where clip is a CLIPModel"):
        OVMultiLabelClassifier(load_clip(tiny), ["cat"])


def save(model, path):
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(model)
    model._trainer = None
    trainer.save_checkpoint(path, weights_only=True)


def test_checkpoints_hold_what_learned_and_load_safely(tiny, tmp_path):
    model = OVMultiLabelClassifier(tiny, VOCABULARY, stages=list(STAGES))
    for parameter in (model.model.prompt.context, model.model.image_encoder.visual_projection.weight):
        torch.nn.init.normal_(parameter)
    save(model, tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    groups = [group for stage in STAGES for group in stage.parameter_groups(model.learning_parts)]
    learned = {n for group in groups for p in group["params"] for n, q in model.named_parameters() if p is q}
    assert set(state) == learned

    loaded = OVMultiLabelClassifier.from_checkpoint(tmp_path / "x.ckpt")
    assert loaded.model.vocabulary == VOCABULARY
    pixels = torch.randn(2, 3, 48, 48)
    assert torch.equal(loaded.eval()(pixels), model.eval()(pixels))


def test_a_checkpoint_of_other_parts_is_refused(tiny, tmp_path):
    save(OVMultiLabelClassifier(tiny, VOCABULARY, head=LocalHead(top_k=2)), tmp_path / "x.ckpt")
    assert OVMultiLabelClassifier.from_checkpoint(tmp_path / "x.ckpt").model.head.top_k == 2
    with pytest.raises(
        UserError, match=r"x\.ckpt: .*made with head .*LocalHead\(top_k=2\), this model has .*GlobalHead"
    ):
        OVMultiLabelClassifier.from_checkpoint(tmp_path / "x.ckpt", head=GlobalHead())
    with pytest.raises(UserError, match=r"LocalHead\(top_k=3\)"):
        OVMultiLabelClassifier.from_checkpoint(tmp_path / "x.ckpt", head=LocalHead(top_k=3))
    assert OVMultiLabelClassifier.from_checkpoint(tmp_path / "x.ckpt", head=LocalHead(top_k=2)).model.head.top_k == 2


def test_bad_checkpoints_are_named(model, tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    torch.save({"state_dict": {"model.prompt.context": torch.zeros(3)}}, tmp_path / "bare.ckpt")
    save(model, tmp_path / "short.ckpt")
    short = torch.load(tmp_path / "short.ckpt", weights_only=True)
    del short["state_dict"]["model.image_encoder.visual_projection.weight"]
    torch.save(short, tmp_path / "short.ckpt")
    torch.save({"state_dict": {}, "evil": Image.new("L", (1, 1))}, tmp_path / "pickle.ckpt")
    for name, message in [
        ("none", "no such checkpoint"),
        ("text", "not a checkpoint"),
        ("other", "holds no state_dict"),
        ("bare", "holds no ovml recipe"),
        ("short", "lacks 'model.image_encoder"),
        ("pickle", "not a checkpoint that ovml can read safely"),
    ]:
        with pytest.raises(UserError, match=rf"{name}\.ckpt: .*{message}"):
            model.load_learned(tmp_path / f"{name}.ckpt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such-clip", "no such checkpoint here, .*'ovml-demo'"),
        ("/no/such/folder", "no such folder; check the path"),
        ("./no/clip", "no such folder; check the path"),
        ("runs/demo/version_9", "no such folder; check the path"),
    ],
)
def test_a_checkpoint_name_that_leads_nowhere(name, message):
    with pytest.raises(UserError, match=f"{name}: {message}"):
        OVMultiLabelClassifier(name)


def test_a_folder_that_is_no_clip(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="a checkpoint of type 'bert'"):
        OVMultiLabelClassifier(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="not a complete CLIP checkpoint"):
        OVMultiLabelClassifier(str(tmp_path))


def test_labels_that_share_a_name_share_an_embedding_and_keep_their_ids(tiny):
    vocabulary = LabelVocabulary.from_ids(["/m/1", "/m/2"], ["/m/3"], {"/m/1": "bank", "/m/2": "cat", "/m/3": "bank"})
    model = OVMultiLabelClassifier(tiny, vocabulary, head=GlobalHead(), stages=list(STAGES)).eval()
    embeds = model.model.embed_labels()
    torch.testing.assert_close(embeds, model.model.embed_labels(["bank", "cat"])[[0, 1, 0]], atol=1e-6, rtol=0)
    tags = model.predict_labels(picture(0), top_k=None)
    assert {tag.label for tag in tags} == {"bank (/m/1)", "cat", "bank (/m/3)"}
    with torch.no_grad():
        model.model.prompt.context.add_(0.1)
    torch.testing.assert_close(model.model.prompt(vocabulary.seen_only()), model.model.prompt(["bank", "cat"]))


def test_a_batch_whose_pictures_were_all_broken_is_passed_over(model):
    data = {"pixel_values": torch.empty(0), "labels": torch.empty(0), "image_id": []}
    model.validation_step(data, 0)
    assert not model.evaluation.compute()
    assert model.predict_step(data, 0)["image_id"] == []


def test_a_step_may_rank_a_part_of_the_labels(tiny):
    """All labels present in the batch and some others, scored as that label set alone would be."""
    names = tuple("abcdefghij")
    stages = [PromptStage(epochs=1, labels_per_step=4)]
    model = trained(OVMultiLabelClassifier(tiny, list(names), head=GlobalHead(), stages=stages))
    data = batch()
    targets = torch.zeros(4, 10, dtype=torch.int8)
    targets[:, 7], targets[0, 2] = 1, 1
    data["labels"] = targets
    drawn = set()
    for seed in range(12):
        torch.manual_seed(seed)
        embeds, kept, _ = scored_labels(model.model, targets, model.stage)
        columns = [
            i for i in range(10) if any(torch.allclose(e, model.model.embed_labels([names[i]])[0]) for e in embeds)
        ]
        assert len(columns) == 4
        assert {2, 7} <= set(columns)
        assert torch.equal(kept, targets[:, columns])
        torch.manual_seed(seed)
        scores = model.model.head(model.model.encode_images(data["pixel_values"]), embeds)
        torch.testing.assert_close(model.training_step(data, 0), ranking_loss(scores, kept), atol=1e-5, rtol=0)
        drawn |= set(columns)
    assert drawn == set(range(10))
    targets[0] = 1  # more labels are present than a step ranks: all of them count
    assert len(scored_labels(model.model, targets, model.stage)[0]) == 10
    with pytest.raises(UserError, match="labels_per_step must be at least 2"):
        PromptStage(labels_per_step=1)
