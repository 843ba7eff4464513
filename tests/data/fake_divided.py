"""Tiny trees of COCO, VOC, MultiScene-Clean, MLRSNet, PA-100K and RAP in the layouts that are handed out."""

import csv
import json
from itertools import islice

import numpy as np
from PIL import Image

from ovml.vocabulary import packaged_vocabulary

SCENES = tuple(f"Place {i}" for i in range(36))
COVERS = tuple(f"cover {i}" for i in range(60))
PA100K = (
    "Female", "AgeOver60", "Age18-60", "AgeLess18", "Front", "Side", "Back", "Hat", "Glasses", "HandBag", "ShoulderBag",
    "Backpack", "HoldObjectsInFront", "ShortSleeve", "LongSleeve", "UpperStride", "UpperLogo", "UpperPlaid",
    "UpperSplice", "LowerStripe", "LowerPattern", "LongCoat", "Trousers", "Shorts", "Skirt&Dress", "boots",
)  # fmt: skip
RAP = ("Female", "hs-LongHair", "attach-HandBag", *(f"attribute-{i}" for i in range(89)))


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (20 * number % 255, 90, 160)).save(path)


def labels_of(number, names):
    """Every third label, from a start that depends on the image."""
    return [name for i, name in enumerate(names) if (i + number) % 3 == 0]


def write_coco(root, year="2014", trainval=False):
    names = packaged_vocabulary("coco").names
    truth = {}
    for split, start, count in (("train", 0, 9), ("val", 100, 6)):
        folder = f"trainval{year}" if trainval else f"{split}{year}"
        images, annotations = [], []
        for number in range(start, start + count):
            name = f"COCO_{split}{year}_{number:012d}.jpg"
            picture(root / folder / name, number)
            images.append({"id": number, "file_name": name, "width": 40, "height": 40})
            own = labels_of(number, names)
            truth[f"{folder}/{name}"] = set(own)
            for label in [*own, own[0]]:  # two boxes of one class
                ids = {"id": len(annotations), "image_id": number, "category_id": 1 + names.index(label)}
                annotations.append({**ids, "bbox": [0, 0, 5, 5], "iscrowd": 0})
        categories = [{"id": 1 + i, "name": name} for i, name in enumerate(names)]
        file = root / "annotations" / f"instances_{split}{year}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return truth


def write_voc(root):
    names = packaged_vocabulary("voc").names
    truth = {}
    lists = {"trainval": range(0, 8), "train": range(0, 5), "val": range(5, 8), "test": range(8, 13)}
    for split, numbers in lists.items():
        file = root / "ImageSets" / "Main" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{number:06d}\n" for number in numbers))
    for number in range(13):
        picture(root / "JPEGImages" / f"{number:06d}.jpg", number)
        present, difficult = labels_of(number, names), names[(number + 1) % 20]
        objects = [(name, 0) for name in present] + ([] if difficult in present else [(difficult, 1)])
        truth[f"JPEGImages/{number:06d}.jpg"] = (set(present), {difficult} - set(present))
        inside = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in objects)
        file = root / "Annotations" / f"{number:06d}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"<annotation><filename>{number:06d}.jpg</filename>{inside}</annotation>")
    return truth


def write_table(path, names, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image", *names])
        lines.writerows([image, *(int(name in own) for name in names)] for image, own in rows)


def write_multiscene(root):
    truth = {}
    for split, start in (("train", 0), ("test", 50)):
        rows = [(f"img_{number}", labels_of(number, SCENES)) for number in range(start, start + 8)]
        write_table(root / f"{split}.csv", SCENES, rows)
        for number, (image, own) in enumerate(rows):
            picture(root / "images" / f"{image}.jpg", number)
            truth[f"images/{image}.jpg"] = set(own)
    return truth


def write_mlrsnet(root):
    truth = {}
    for category, start in (("beach", 0), ("swimmimg_pool", 20)):
        rows = [(f"{category}_{number:05d}.jpg", labels_of(number, COVERS)) for number in range(start, start + 12)]
        write_table(root / "labels" / f"{category}.csv", COVERS, rows)
        for number, (image, own) in enumerate(rows):
            picture(root / "Images" / category / image, number)
            truth[f"Images/{category}/{image}"] = set(own)
    return truth


def cells(texts):
    """A cell array of texts, as loadmat gives it back: [N, 1] objects."""
    made = np.empty((len(texts), 1), dtype=object)
    made[:, 0] = [np.array([text]) for text in texts]
    return made


def write_pa100k(root, folder="release_data/release_data"):
    from scipy.io import savemat

    truth, content, numbers = {}, {"attributes": cells(PA100K)}, iter(range(1, 100))
    for split, count in (("train", 9), ("val", 4), ("test", 5)):
        own = list(islice(numbers, count))
        images = [f"{number:06d}.jpg" for number in own]
        for number, image in zip(own, images, strict=True):
            picture(root / folder / image, number)
            truth[f"{folder}/{image}"] = set(labels_of(number, PA100K))
        marks = [[int(name in labels_of(number, PA100K)) for name in PA100K] for number in own]
        content |= {f"{split}_images_name": cells(images), f"{split}_label": np.array(marks, dtype=np.uint8)}
    savemat(root / "annotation.mat", content)
    return truth


def write_rap(root):
    from scipy.io import savemat

    count, truth = 12, {}
    images = [f"CAM{number:02d}_line1.png" for number in range(count)]
    for number, image in enumerate(images):
        picture(root / "RAP_dataset" / image, number)
        truth[f"RAP_dataset/{image}"] = set(labels_of(number, RAP[:51]))
    marks = np.array([[int(name in labels_of(number, RAP)) for name in RAP] for number in range(count)], dtype=np.uint8)
    divisions = np.empty((5, 1), dtype=object)
    for k in range(5):
        order = np.roll(np.arange(1, count + 1), k)  # counted from 1
        divisions[k, 0] = {"train_index": order[:9], "test_index": order[9:]}
    names = cells(RAP)
    fields = {"partition": divisions, "label": marks, "cn": names, "en": names, "viewpoint": np.zeros(count)}
    (root / "RAP_annotation").mkdir(parents=True)
    savemat(root / "RAP_annotation" / "RAP_annotation.mat", {"RAP_annotation": {**fields, "name": cells(images)}})
    return truth
