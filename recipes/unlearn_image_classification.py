"""Unlearn from an image classifier.

    python recipes/unlearn_image_classification.py --config recipes/lotus_vit_cifar10.yaml --model you/your-model
    accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml \
        recipes/unlearn_image_classification.py --config recipes/lotus_vit_cifar10.yaml --model you/your-model

It does what `hf-unlearn run` does, step by step, as a place to begin your own script. `hf-unlearn run --help` lists the
settings; all can stand in the YAML file or on the command line.
"""

import sys
from collections.abc import Sequence

from hf_unlearn import unlearn
from hf_unlearn.commands import exit_code
from hf_unlearn.commands.recipe import parse
from hf_unlearn.commands.steps import load_data, load_model, save_and_report


def main(argv: Sequence[str]) -> None:
    recipe, config, args = parse(argv)
    recipe.task = "image-classification"

    # The original, and the image processor that makes its inputs of the images in the dataset
    model, image_processor = load_model(recipe)

    # The rows that have to go, the other rows of the training split, and images that the model was never trained on
    data = load_data(recipe, args, model)

    result = unlearn(
        model,
        forget=data["forget"],
        retain=data["retain"],
        unseen=data["unseen"],
        test=data["test"],
        method=config,
        args=args,
        processing_class=image_processor,
        base_model=recipe.base_model,
        overlap=recipe.overlap,
        augment=None,  # a transform of the training images, such as torchvision.transforms.v2.RandomHorizontalFlip()
        resume_from_checkpoint=args.resume_from_checkpoint or recipe.resume,
    )
    save_and_report(result)
    result.trainer.end()


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
