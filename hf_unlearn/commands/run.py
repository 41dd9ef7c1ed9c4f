"""unlearn as a recipe says: run RECIPE.yaml [key=value ...]"""

import sys
from collections.abc import Sequence

from .text import speak

USAGE = "usage: hf-unlearn run [RECIPE.yaml] [key=value | --key value ...]\n"
SPOKEN = {"peft_config": "lora", "unseen": "unseen_split", "test": "test_split", "resume_from_checkpoint": "resume"}


def main(argv: Sequence[str]) -> int:
    if not argv:
        print(
            USAGE,
            "hf-unlearn run --help lists every key, hf-unlearn recipes what to begin with.",
            sep="\n",
            file=sys.stderr,
        )
        return 2
    from . import recipe, steps
    from .settings import read_settings, settable

    speak({name: f"{name}=" for name in settable(recipe.RecipeArguments)} | {a: f"{b}=" for a, b in SPOKEN.items()})
    if {"-h", "--help"} & set(argv):
        settings = read_settings([word for word in argv if word not in ("-h", "--help")])
        print(USAGE)
        print("The settings, in the file or on the command line, which wins.")
        print("Those of another method than auto: hf-unlearn run --help method=NAME\n")
        print(recipe.help_text(recipe.method_of(settings).info.name))
        return 0
    steps.run(*recipe.parse(argv)).trainer.accelerator.end_training()
    return 0
