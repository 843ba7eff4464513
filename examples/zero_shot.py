"""Score an image against any label names, without training.

python examples/zero_shot.py                                       # ovml-demo, on a drawn image
python examples/zero_shot.py photo.jpg openai/clip-vit-base-patch16   # real CLIP (downloads 600 MB once)
"""

import sys

from ovml import OVMultiLabelClassifier
from ovml.data.synthetic.scenes import draw_scene
from ovml.heads import CosineHead
from ovml.prompts import TemplatePrompt

picture, clip = sys.argv[1:3] if len(sys.argv) > 2 else (draw_scene(0, "test", 0).image, "ovml-demo")
model = OVMultiLabelClassifier(clip, head=CosineHead(), prompt=TemplatePrompt("a photo of a {}"), stages=[])
for label, score in model.predict_labels(picture, labels=["red circle", "heart", "blue star", "moon"]):
    print(f"{score:.3f}  {label}")
