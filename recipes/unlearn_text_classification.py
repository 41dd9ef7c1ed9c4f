"""Unlearn from a text classifier.

    python recipes/unlearn_text_classification.py --config recipes/lotus_bert_imdb.yaml --model you/your-model
    accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml \
        recipes/unlearn_text_classification.py --config recipes/lotus_bert_imdb.yaml --model you/your-model

It does what `hf-unlearn run` does, step by step, as a place to begin your own script. `hf-unlearn run --help` lists the
settings; all can stand in the YAML file or on the command line.
"""

import sys
from collections.abc import Sequence

from hf_unlearn import unlearn
from hf_unlearn.commands import exit_code
from hf_unlearn.commands.recipe import parse
from hf_unlearn.commands.steps import finish, load_data, load_model, settings


def main(argv: Sequence[str]) -> None:
    recipe, config, args = parse(argv)
    recipe.task = "text-classification"

    # The original, and the tokenizer that makes its inputs of the texts in the dataset
    model, tokenizer = load_model(recipe, args)

    # The rows that have to go, the other rows of the training split, and texts that the model was never trained on
    data = load_data(recipe, args, model)

    # Adapter, overlap and so on; `unlearn` takes more, as callbacks= or a data_collator= of your own
    about = settings(recipe, args, model, data)
    result = unlearn(model, **data, method=config, args=args, processing_class=tokenizer, **about)

    # Saved in output_dir; audited and pushed, if the settings say so
    finish(recipe, result)
    result.trainer.accelerator.end_training()


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
