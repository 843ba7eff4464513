"""Draw the README's figure: the first test images with the labels that a trained model ranks first.

python examples/picture_of_tags.py runs/demo/version_0 docs/images/tags.png docs/images/scene.png

The last argument is optional: where to write one of the scenes alone, three times its size.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ovml import Tagger, load_model
from ovml.data.synthetic.scenes import LABELS, UNSEEN_LABELS, draw_scene

SIDE, GAP, LINE, COLUMNS, ROWS, TOP = 256, 24, 24, 3, 2, 5
ALONE = 3  # index of the scene that is written alone
INK, GREEN, GREY = "#1b1f24", "#1a7f37", "#8c959f"


def main(run: str, out: str, scene_out: str | None = None) -> None:
    model = load_model(run)
    scenes = [draw_scene(0, "test", index) for index in range(COLUMNS * ROWS)]
    ranked = Tagger(model, LABELS, top_k=TOP).predict([scene.image for scene in scenes])
    step = GAP + SIDE + 14 + TOP * LINE
    canvas = Image.new("RGB", (GAP + COLUMNS * (SIDE + GAP), ROWS * step + 44), "white")
    pen, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(17), ImageFont.load_default(14)
    for place, (scene, tags) in enumerate(zip(scenes, ranked, strict=True)):
        left, top = GAP + place % COLUMNS * (SIDE + GAP), GAP + place // COLUMNS * step
        canvas.paste(scene.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
        truth = {LABELS[i] for i in scene.label_ids}
        for row, (label, score) in enumerate(tags):
            y = top + SIDE + 8 + row * LINE
            unseen = " *" if label in UNSEEN_LABELS else ""
            pen.text((left, y), label + unseen, GREEN if label in truth else GREY, font)
            pen.text((left + SIDE, y), f"{score:.2f}", INK if label in truth else GREY, font, anchor="ra")
    note = f"First {TOP} of {len(LABELS)} labels. Green: in the image. *: a label never seen in training."
    pen.text((GAP, canvas.height - 30), note, INK, small)
    write(canvas, Path(out))
    if scene_out is not None:
        side = 3 * scenes[ALONE].image.width
        write(scenes[ALONE].image.resize((side, side), Image.Resampling.BICUBIC), Path(scene_out))


def write(image: Image.Image, out: Path) -> None:
    aside = out.with_suffix(".part.png")
    image.save(aside, optimize=True)
    aside.rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
