"""RAM's training as published: reference numbers of the whole model, of its steps and their rates."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from ram_reference import TOLERANCE, RAMTokenizer, close, iterations_of, possible_iterations, ram_clip, set_tower
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ovml import LabelVocabulary, OVMultiLabelClassifier
from ovml.heads import RAMHead
from ovml.losses import MultiMatchingLoss
from ovml.prompts import DeepPrompt
from ovml.training import RAMStage
from ovml.training.callbacks.averaging import LearnedEMA
from ovml.training.optim import AdamWAndSGD, epoch_cosine

START = 2e-3
COLUMNS = {"seen": slice(0, 7), "zsl": slice(7, None), "gzsl": slice(None)}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Constant(RAMStage):
    """The stage with rates that stay."""

    def schedule(self, optimizer, steps, epochs):
        return {"scheduler": LambdaLR(optimizer, lambda epoch: 1.0), "interval": "epoch"}


class Scaled(OVMultiLabelClassifier):
    """Scales the loss in the backward pass, as mixed precision does, by what the reference did."""

    factor = 256

    def backward(self, loss):
        (loss * self.factor).backward()

    def on_before_optimizer_step(self, optimizer):
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.factor


def make(golden, settings, stage=None, cls=OVMultiLabelClassifier):
    names = [*settings["seen"], *settings["unseen"]]
    vision, text = settings["vision_layers_with_adapter"], settings["text_layers_with_tokens"]
    stage = stage or RAMStage(keep_unlabelled=True)
    assert (len(vision), settings["vision_tokens"]) == (stage.num_layers, stage.num_tokens)
    classifier = cls(
        ram_clip(golden, settings),
        labels=LabelVocabulary(tuple(settings["seen"]), tuple(settings["unseen"])),
        head=RAMHead(START),
        prompt=DeepPrompt(
            num_layers=len(text), num_tokens=settings["text_tokens"], float16_tokens=stage.float16_tokens
        ),
        loss=MultiMatchingLoss(),
        distillation_weight=0.0,
        stages=[stage],
        tokenizer=RAMTokenizer(golden, names),
    )
    set_tower(classifier.model.image_encoder, golden, vision)
    classifier.model.prompt.tokens.data.copy_(torch.stack([golden[f"tokens.text.{block}"] for block in text]))
    return classifier


def stage_of(cls=RAMStage, **options):
    return cls(num_layers=2, keep_unlabelled=True, **options)


def batches(golden, settings):
    """The two batches, with all seen labels known and unseen ones absent."""
    size, unseen = settings["batch"], len(settings["unseen"])
    targets = torch.nn.functional.pad(golden["targets"], (0, unseen)).to(torch.int8)
    return [
        {"pixel_values": golden["images"][i : i + size], "labels": targets[i : i + size], "image_id": ["x"] * size}
        for i in (0, size)
    ]


@pytest.fixture
def settings(ram_json):
    return ram_json["settings"]


def scores(classifier, images, columns):
    model = classifier.model
    embeds = model.embed_labels()[columns]
    with torch.no_grad():
        return model.score(model.encode_images(images), embeds).exp(), embeds


@pytest.mark.parametrize("labels", COLUMNS)
def test_the_whole_model_in_evaluation(ram_golden, ram_json, settings, labels, monkeypatch):
    classifier, problems = make(ram_golden, settings, stage_of()).eval(), []
    images, model = ram_golden["images"][: settings["batch"]], classifier.model
    transport = model.head.transport
    monkeypatch.setattr(model.head, "transport", lambda *p: problems.append((*p, plan := transport(*p))) or plan)
    score, embeds = scores(classifier, images, COLUMNS[labels])
    close(score, ram_golden[f"model.eval.{labels}.score"])
    assert iterations_of(*problems[0]) == ram_json["iterations"][f"model.eval.{labels}"]
    with torch.no_grad():
        features = model.encode_images(images).for_labels(embeds)
        logits = model.head.training_logits(features, embeds, torch.zeros(len(images), len(embeds)), None)
    close(logits[0], ram_golden[f"model.eval.{labels}.global_logits"])
    close(logits[1], ram_golden[f"model.eval.{labels}.local_logits"])
    start = ram_json["model.start"]
    assert float(model.head.scale) == pytest.approx(start["logit_scale"], rel=1e-6)
    assert float(model.head.tau_global.detach()) == pytest.approx(start["temperature"], rel=1e-6)
    assert float(model.head.tau_local.detach()) == pytest.approx(start["local_temperature"], rel=1e-6)


def our_name(name, settings):
    """A reference's name of what learns in ovml's model; for a text block also the row of the tokens."""
    kind, _, rest = name.partition(".")
    encoder = "model.image_encoder."
    if kind == "adapter":
        block, _, layer = rest.partition(".")
        place = settings["vision_layers_with_adapter"].index(int(block))
        return f"{encoder}local_path.adapters.{place}.{layer}", None
    if name.startswith("tokens.vision."):
        return f"{encoder}vision_model.encoder.layers.{name.rpartition('.')[2]}.adapt_tokens", None
    if name.startswith("tokens.text."):
        return "model.prompt.tokens", settings["text_layers_with_tokens"].index(int(name.rpartition(".")[2]))
    return {"temperature": "model.head.tau_global", "local_temperature": "model.head.tau_local"}[name], None


def found(classifier, name, settings, gradient=False):
    own, row = our_name(name, settings)
    tensor = dict(classifier.named_parameters())[own] if gradient else classifier.state_dict()[own]
    tensor = tensor.grad if gradient else tensor
    return tensor if row is None else tensor[row]


def test_the_whole_model_in_training(ram_golden, ram_json, settings):
    """The training forward, what the objective makes of it, and the norm of every gradient."""
    classifier = make(ram_golden, settings, stage_of())
    expected, seen, head = ram_json["model.train"], {}, classifier.model.head
    training_logits, transport = head.training_logits, head.transport

    def watched_logits(*given):
        seen["logits"], seen["teacher"] = training_logits(*given), given[3]
        return seen["logits"]

    def watched_transport(*given):
        seen["plan"] = transport(*given)
        seen["problem"] = (*given, seen["plan"])
        return seen["plan"]

    head.training_logits, head.transport = watched_logits, watched_transport
    batch = batches(ram_golden, settings)[0]
    found_loss = classifier.objective(classifier.model, classifier.teacher, batch, classifier.stage)
    for name, logits in zip(("global", "local"), seen["logits"], strict=True):
        close(logits, ram_golden[f"model.train.{name}_logits"])
        loss = MultiMatchingLoss()(logits.detach(), ram_golden["targets"][: settings["batch"]])
        assert float(loss) == pytest.approx(expected[f"loss_{name}"], rel=TOLERANCE)
    softmaxes = [logits.softmax(-1) for logits in seen["logits"]]
    close(sum(softmaxes) / 2, ram_golden["model.train.score"])
    close(seen["plan"], ram_golden["model.train.plan"])
    assert iterations_of(*seen["problem"]) == ram_json["iterations"]["model.train"]
    teacher = seen["teacher"]
    close(teacher.patch_embeds, ram_golden["teacher.patch"])
    close(teacher.label_embeds, ram_golden["text.teacher_embeds"][COLUMNS["seen"]])
    prior = head.prior(teacher.patch_embeds, teacher.label_embeds, ram_golden["targets"][: settings["batch"]])
    close(prior.exp(), ram_golden["model.train.knowledge_q"])
    assert float(found_loss.total.detach()) == pytest.approx(expected["loss"], rel=TOLERANCE)
    found_loss.total.backward()
    for name, norm in expected["grad_norms"].items():
        got = float(found(classifier, name, settings, gradient=True).norm())
        assert got == pytest.approx(norm, rel=1e-3), name
    learning = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert learning == {our_name(name, settings)[0] for name in ram_json["trainable"]}


class Watch(Callback):
    """Notes the losses, the rates and the temperatures of each step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates = {f"rate_{group['name']}": group["lr"] for group in optimizer.param_groups}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        head = module.model.head
        step = {"temperature": float(head.tau_global.detach()), "local_temperature": float(head.tau_local.detach())}
        self.steps.append({**step, **self.rates, "loss": float(outputs["loss"])})


def train(classifier, golden, settings, decay, epochs, repeats):
    """Train by Lightning; returns the steps, the weights and the averages."""
    watch, average = Watch(), LearnedEMA(decay, each_epoch=epochs > 1, copied=["model.head.tau_global"])
    weights, problems, transport, losses = {}, [], classifier.model.head.transport, []
    hook = classifier.objective.loss.register_forward_hook(lambda _, __, loss: losses.append(float(loss.detach())))

    def watched(*problem):
        problems.append((*problem, plan := transport(*problem)))
        return plan

    class Keep(Callback):
        def on_train_epoch_end(self, trainer, module):
            weights.update({name: value.clone() for name, value in average.state_dict()["weights"].items()})

    rows = batches(golden, settings) * repeats
    trainer = Trainer(
        max_epochs=epochs, callbacks=[watch, average, Keep()], limit_val_batches=0, enable_checkpointing=False, **QUIET
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier.model.head, "transport", watched)
        trainer.fit(classifier, DataLoader(rows, batch_size=None))
    hook.remove()
    for i, (step, problem) in enumerate(zip(watch.steps, problems, strict=True)):
        step["iterations"] = possible_iterations(*problem[:-1])
        step["loss_global"], step["loss_local"] = losses[2 * i : 2 * i + 2]
    assert len(losses) == 2 * len(watch.steps)
    averaged = copy.deepcopy(classifier.state_dict())
    classifier.load_state_dict(weights, strict=False)
    return watch.steps, classifier, averaged


LARGE = {"lr": 1e-3, "temperature_lr": 1e-4, "token_lr": 1e-2}


@pytest.fixture(scope="module", params=["published", "large"])
def trained(request, ram_golden, ram_json):
    settings = ram_json["settings"]
    torch.manual_seed(0)
    if request.param == "published":
        stage = stage_of(float16_tokens=False)
        result = train(make(ram_golden, settings, stage), ram_golden, settings, 0.9997, epochs=4, repeats=1)
    else:
        stage = stage_of(Constant, float16_tokens=False, **LARGE)
        result = train(make(ram_golden, settings, stage), ram_golden, settings, 0.9, epochs=1, repeats=4)
    return request.param, *result


def check_steps(steps, expected):
    assert len(steps) == len(expected) == 8
    for step, other in zip(steps, expected, strict=True):
        assert step.keys() == other.keys()
        assert other["iterations"] in step["iterations"]
        for name in step.keys() - {"iterations"}:
            assert step[name] == pytest.approx(other[name], rel=TOLERANCE), name
    assert sum(len(step["iterations"]) for step in steps) <= len(steps) + 2  # nearly all of them are certain


def test_eight_steps(trained, ram_json):
    kind, steps, *_ = trained
    check_steps(steps, ram_json[f"steps_{kind}"])


def after(golden, kind):
    """What the reference tells after the steps, by the names without their beginning."""
    return {k.removeprefix(f"after_{kind}."): v for k, v in golden.items() if k.startswith(f"after_{kind}.")}


def check_weights(classifier, expected, settings, prefix=""):
    checked = set()
    for name in expected:
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and own.partition(".")[0] in (
            "tokens",
            "adapter",
            "temperature",
            "local_temperature",
        ):
            close(found(classifier, own, settings), expected[name])
            checked.add(name)
    assert len(checked) == 8
    return checked


def test_what_learned_after_them(trained, ram_golden, settings):
    kind, _, classifier, averaged = trained
    expected, images = after(ram_golden, kind), ram_golden["images"][: settings["batch"]]
    classifier, checked = copy.deepcopy(classifier).eval(), set()
    for prefix, state in (("", None), ("ema.", averaged)):
        if state is not None:
            classifier.load_state_dict(state)
        checked |= check_weights(classifier, expected, settings, prefix)
        for labels in ("zsl", "gzsl"):
            close(scores(classifier, images, COLUMNS[labels])[0], expected[f"{prefix}score_{labels}"])
            checked.add(f"{prefix}score_{labels}")
        if state is None:
            with torch.no_grad():
                embeds = classifier.model.embed_labels()
                features = classifier.model.encode_images(images).for_labels(embeds[COLUMNS["seen"]])
            for name, value in (("text", embeds), ("global", features.global_embeds), ("patch", features.patch_embeds)):
                close(value, expected[name])
                checked.add(name)
    assert checked == set(expected)


def test_eight_steps_with_tokens_in_float16(ram_golden, ram_json, settings):
    stage = stage_of(Constant, **LARGE)
    classifier = make(ram_golden, settings, stage, cls=Scaled)
    steps, classifier, _ = train(classifier, ram_golden, settings, 0.9, epochs=1, repeats=4)
    check_steps(steps, ram_json["steps_large_rounded"])
    expected, block = after(ram_golden, "large_rounded"), settings["vision_layers_with_adapter"][-1]
    classifier.eval()
    got = {
        "score_gzsl": scores(classifier, ram_golden["images"][: settings["batch"]], COLUMNS["gzsl"])[0],
        f"tokens.vision.{block}": found(classifier, f"tokens.vision.{block}", settings),
    }
    assert got.keys() == expected.keys()
    for name, value in got.items():
        close(value, expected[name], 1e-3)


@pytest.mark.parametrize("recipe", ["coco", "nus"])
def test_rates_of_each_epoch(ram_json, recipe):
    stage = RAMStage()
    ends = (stage.schedule_epochs, stage.warmup_epochs, stage.warmup_lr, stage.min_lr)
    rates = ram_json["rates"][recipe]
    assert len(rates) == stage.epochs
    for epoch, *expected in rates:
        got = [epoch_cosine(epoch, rate, *ends) for rate in (stage.lr, stage.temperature_lr, stage.token_lr)]
        assert got == pytest.approx(expected, rel=1e-9)


def test_the_groups_are_the_published_ones(ram_golden, ram_json, settings):
    classifier = make(ram_golden, settings, stage_of())
    optimizer = classifier.stage.optimizer(classifier.stage.parameter_groups(classifier.learning_parts))
    assert isinstance(optimizer, AdamWAndSGD)
    for group, expected in zip(optimizer.param_groups, ram_json["optimizers"], strict=True):
        assert group["lr"] == expected["initial_lr"]
        for name in {"weight_decay", "betas", "eps", "momentum", "dampening", "nesterov"} & expected.keys():
            assert group[name] == (tuple(expected[name]) if name == "betas" else expected[name])
        numbers = sum(parameter.numel() for parameter in group["params"])
        assert numbers > 0
        assert ("momentum" in group) == (expected["kind"] == "SGD")
    counts = [len(group["params"]) for group in optimizer.param_groups]
    assert counts[:2] == [expected["tensors"] for expected in ram_json["optimizers"][:2]]
    assert counts[2] == ram_json["optimizers"][2]["tensors"] - 1  # tokens of two text blocks are one tensor here
