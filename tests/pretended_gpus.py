"""Options of a tagger on a Ray cluster whose GPUs are pretended; Ray's processes import this."""

import json
from pathlib import Path

import torch

from ovml.inference.ray import TaggerOptions


class OnPretendedGPUs(TaggerOptions):
    """Loads the model to the CPU where a GPU is meant, and tells where it runs."""

    def tagger(self, device):
        if device == "cuda":
            import ray

            context = ray.get_runtime_context()
            told = Path(self.model).parent / "told"
            told.mkdir(exist_ok=True)
            found = {"node": context.get_node_id(), "threads": torch.get_num_threads()}
            (told / context.get_actor_id()).write_text(json.dumps({**found, **context.get_assigned_resources()}))
        return super().tagger("cpu")
