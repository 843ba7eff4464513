"""Draw the README's figure: test images with the labels that a trained model ranks first.

python examples/picture_of_tags.py runs/demo/version_0 docs/images/tags.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ovml import Tagger, load_model
from ovml.data.synthetic.scenes import LABELS, UNSEEN_LABELS, draw_scene

SIDE, GAP, LINE, SHOWN, TOP = 220, 24, 24, 4, 5
INK, GREEN, GREY = "#1b1f24", "#1a7f37", "#8c959f"


def main(run: str, out: str) -> None:
    model = load_model(run)
    scenes = [scene for i in range(40) if len((scene := draw_scene(0, "test", i)).objects) in (3, 4)][:SHOWN]
    ranked = Tagger(model, LABELS, top_k=TOP).predict([scene.image for scene in scenes])
    height = GAP + SIDE + 14 + TOP * LINE + 44
    canvas = Image.new("RGB", (GAP + SHOWN * (SIDE + GAP), height), "white")
    pen, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(17), ImageFont.load_default(14)
    for column, (scene, tags) in enumerate(zip(scenes, ranked, strict=True)):
        left = GAP + column * (SIDE + GAP)
        canvas.paste(scene.image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, GAP))
        truth = {LABELS[i] for i in scene.label_ids}
        for row, (label, score) in enumerate(tags):
            y = GAP + SIDE + 10 + row * LINE
            unseen = " *" if label in UNSEEN_LABELS else ""
            pen.text((left, y), label + unseen, GREEN if label in truth else GREY, font)
            pen.text((left + SIDE, y), f"{score:.2f}", INK if label in truth else GREY, font, anchor="ra")
    note = f"First {TOP} of {len(LABELS)} labels. Green: in the picture. *: a label never seen in training."
    pen.text((GAP, height - 30), note, INK, small)
    aside = Path(out).with_suffix(".part.png")
    canvas.save(aside, optimize=True)
    aside.rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:3])
