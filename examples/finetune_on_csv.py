r"""Fine-tune on a folder of images with a CSV file `image,labels`; some labels may be held out as unseen.

    python examples/finetune_on_csv.py                                          # a drawn folder
    python examples/finetune_on_csv.py photos/ --unseen "palm,black cat" \
        --clip openai/clip-vit-base-patch16 --epochs 10 --out my-model          # photos/labels.csv: beach.jpg,sea;sand

The data module comes from `own_dataset.py`. Use the saved model with `ovml tag photos/ --model my-model`.
"""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
from own_dataset import CSVDataModule, draw_folder

from ovml import OVMultiLabelClassifier
from ovml.training import VisionStage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="images and labels.csv (default: drawn images)")
    parser.add_argument("--unseen", help="labels to exclude from training, separated by commas")
    parser.add_argument("--clip", default="ovml-demo", help="name of a CLIP checkpoint")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", help="folder to save the model in")
    args = parser.parse_args()
    if args.folder is None:
        args.folder, args.unseen = str(draw_folder()), "heart,red circle,striped star"

    unseen = args.unseen.split(",") if args.unseen else []
    data = CSVDataModule(args.folder, unseen=unseen, clip=args.clip, batch_size=args.batch_size)
    stage = VisionStage(epochs=args.epochs, warmup_epochs=args.epochs / 10)
    model = OVMultiLabelClassifier(args.clip, data.vocabulary, distillation_weight=0.1, stages=[stage], ks=[1, 3])
    trainer = pl.Trainer(max_epochs=args.epochs, logger=False, enable_checkpointing=False)
    (before,) = trainer.test(model.zero_shot(), datamodule=data, verbose=False)
    trainer.fit(model, datamodule=data)
    (after,) = trainer.test(model, datamodule=data, verbose=False)
    for name, value in before.items():
        if name.startswith("test/"):
            print(f"{name:15}  zero-shot {value:.3f}  fine-tuned {after[name]:.3f}")
    if args.out:
        model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
