"""The published encoders, and what presets and recipes change in the published setting.

A preset belongs to a dataset. A recipe is a way of training, on any of them: `--recipe`.
"""

import textwrap
from pathlib import Path

from common.parser import value_text

IMAGE_ENCODER, TEXT_ENCODER = "google/vit-base-patch16-384", "bert-base-uncased"  # published

# Of the captions of `shapes`: shares of other photos that they are true of, in percent.
AMBIGUITIES, USUAL_AMBIGUITY = ("0.5", "3", "10", "25"), "3"

PRIOR_OF_EVIDENCE = 0.01  # about what people's judgements of Flickr8k say

# What a dataset changes in the published setting. Flickr30K and COCO change nothing.
PRESETS = {
    "flickr": {},
    "mscoco": {},
    # Small real data for one machine without a GPU: the text encoder is trained from scratch, and
    # a frozen image encoder sees each photo once, since no augmentation changes it.
    "flickr8k": dict(
        text_encoder="small-bert", augment="none", batch_size_train=128, batch_size_test=128,
        num_epochs=8, easy_epochs=4, warmup_epochs=5, learning_rate=5e-4, lr_milestones=[4],
        queue_size=4096, momentum=0.99, val_times=1,
    ),
    # The embedded dataset: both encoders from scratch, in about five minutes on two cores.
    "shapes": dict(
        image_encoder="small-convnext", text_encoder="tiny-bert", vocab="vocab/shapes.txt",
        data_path=Path("data/shapes"), image_res=64, embed_size=128, augment="none",
        batch_size_train=64, batch_size_test=128, num_epochs=8, easy_epochs=4, warmup_epochs=5,
        learning_rate=5e-4, lr_milestones=[4], queue_size=1024, momentum=0.99, prior=0.03,
        val_times=1, workers=1,
    ),
    # Anybody's own photos, and those of the Hub, in the published setting too: no other is known to
    # suit them.
    "custom": {},
    "hub": {},
}

# A way of training, over the preset of the dataset. docs/fine_tuning.md says where values are from.
RECIPES = {
    # A pretrained pair, fine-tuned by the loss that it was trained with.
    "clip": dict(
        loss="infonce", optimizer="adamw", learning_rate=1e-5, weight_decay=0.1,
        lr_schedule="cosine", lr_warmup=200, batch_size_train=256, num_epochs=10,
    ),
    # Two pretrained encoders as they are, of which features are made once, and projections of them
    # that a CPU trains in a minute (docs/results.md). What it sets beside --loss infonce is for
    # --loss fne: 150 steps of Flickr8k are few for the published momentum.
    "frozen": dict(
        freeze="both", augment="none", embed_size=512, loss="infonce", learning_rate=1e-3,
        lr_schedule="cosine", batch_size_train=1024, batch_size_test=128, num_epochs=5,
        easy_epochs=2, warmup_epochs=2, momentum=0.9, val_times=2,
    ),
}


def preset_of(dataset: str, recipe: str | None) -> dict[str, object]:
    """Return what a dataset's preset and, over it, a recipe change in the published setting."""
    return PRESETS[dataset] | (RECIPES[recipe] if recipe is not None else {})


def default_data_path(dataset: str, ambiguity: str) -> Path | None:
    """Return the folder of a dataset's photos where --data_path is not given, or None."""
    path = PRESETS[dataset].get("data_path")
    other = dataset == "shapes" and ambiguity != USUAL_AMBIGUITY
    return path.with_name(f"{path.name}_{ambiguity}") if other else path


def preset_lines(values: dict[str, object], start: str, indent: int) -> str:
    """Return options and their values in lines for a terminal: "image_res 64, lr_milestones 5 15".

    Args:
        values: names of options and their values.
        start: the text that the first line begins with.
        indent: spaces before each of the other lines.
    """
    # A space that is no place to break keeps a name and its value together.
    pairs = ", ".join(f"{name} {value_text(value)}".replace(" ", "\xa0")
                      for name, value in values.items())
    return textwrap.fill(pairs, 80, initial_indent=start, subsequent_indent=" " * indent,
                         break_on_hyphens=False).replace("\xa0", " ")


def presets_help() -> str:
    """Return the part of the help of train.py that lists each dataset's preset, and the recipes."""
    unchanged = ", ".join(dataset for dataset, values in PRESETS.items() if not values)
    lines = ["presets, what --dataset changes in these defaults:",
             f"  {unchanged}: nothing, they have the published setting"]
    lines += [preset_lines(values, f"  {dataset}: ", 4)
              for dataset, values in PRESETS.items() if values]
    lines.append("recipes, what --recipe changes over the preset:")
    lines += [preset_lines(values, f"  {recipe}: ", 4) for recipe, values in RECIPES.items()]
    return "\n".join(lines)
