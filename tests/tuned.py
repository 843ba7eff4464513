"""What the tests of stages that add to the vision tower share."""

import torch

VOCABULARY = {"seen": ["cat", "dog"], "unseen": ["black cat"]}
PIXELS = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))


def trained(model):
    """The model with noise on all that learns but temperatures, as if it had been trained."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name in model._learned_names and "temperature" not in name and ".tau_" not in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def scores(model):
    """Of `PIXELS` against the vocabulary, in the model's precision."""
    with torch.no_grad():
        return model(PIXELS.to(next(model.parameters()).dtype))
