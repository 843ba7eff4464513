"""Processes that train a prompt each embed a share of the labels, and send no buffers that never change."""

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from two import exit_codes, process_group

from ovml import OVMultiLabelClassifier, PromptStage
from ovml.encoders import TextEncoder
from ovml.heads import DualCoOpHead
from ovml.prompts import DualCoOpPrompt
from ovml.training import RAMStage
from ovml.training.distributed import embed_over_processes, ignore_constant_buffers

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)
NAMES = ("cat", "dog", "red car", "sky", "a very long name")


def classifier(clip, stage, prompt=None):
    torch.manual_seed(0)
    head = None if prompt is None else DualCoOpHead()
    return OVMultiLabelClassifier(clip, list(NAMES), prompt=prompt, head=head, stages=[stage])


def step(prompt, embed, rank):
    """Embeddings, and the gradients of a loss that differs between processes."""
    embeds = embed(prompt.embed, NAMES)
    weights = torch.arange(1.0, len(embeds) + 1).view(-1, *[1] * (embeds.ndim - 1)) * (1 + rank)
    return embeds.detach(), torch.autograd.grad((weights * embeds.square()).sum(), prompt.learned_parameters())


def worker(rank, folder, clip):
    found = {}
    with process_group(rank, folder):
        for name, prompt in (("context", None), ("pairs", DualCoOpPrompt(2))):
            model = classifier(clip, PromptStage(), prompt)
            texts, encode = [], TextEncoder.encode

            def counting(self, token_embeds, *args, texts=texts, encode=encode):
                texts.append(len(token_embeds))
                return encode(self, token_embeds, *args)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(TextEncoder, "encode", counting)
                embeds, gradients = step(model.model.prompt, embed_over_processes, rank)
            for gradient in gradients:  # as DDP does
                distributed.all_reduce(gradient)
            found[name] = embeds, [gradient / 2 for gradient in gradients], sum(texts)
        for name, model in (("plain", classifier(clip, PromptStage())), ("statistics", classifier(clip, RAMStage()))):
            ignore_constant_buffers(model)
            found[name] = sorted(_synchronized(DistributedDataParallel(model)))
    torch.save(found, f"{folder}/{rank}.pt")


def _synchronized(wrapped):
    names = {id(buffer): name for name, buffer in wrapped.module.named_buffers()}
    return [names[id(buffer)] for buffer in wrapped.modules_buffers]


def test_shares_of_the_labels_give_the_gradient_of_all(tiny, tmp_path):
    assert exit_codes(worker, str(tmp_path), tiny) == [0, 0]
    processes = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for name, prompt in (("context", None), ("pairs", DualCoOpPrompt(2))):
        model = classifier(tiny, PromptStage(), prompt)
        alone = [step(model.model.prompt, lambda embed, names: embed(names), rank) for rank in range(2)]
        mean = [sum(own) / 2 for own in zip(*(gradients for _, gradients in alone), strict=True)]
        for found in processes:  # of five names the second process repeats its last
            embeds, gradients, texts = found[name]
            torch.testing.assert_close(embeds, alone[0][0], atol=1e-5, rtol=0)
            for ours, theirs in zip(gradients, mean, strict=True):  # to 1e-5 of the largest
                torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)
            assert texts == 3 * (1 if prompt is None else 2)
    assert processes[0]["plain"] == []
    kept = processes[0]["statistics"]
    assert kept
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in kept)
    statistics = classifier(tiny, RAMStage())
    norms = [m for m in statistics.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(kept) == 3 * len(norms)
