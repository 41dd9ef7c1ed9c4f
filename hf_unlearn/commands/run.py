"""unlearn as a recipe says: run RECIPE.yaml [key=value ...]"""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    from . import recipe, steps
    from .settings import read_settings

    if not argv or {"-h", "--help"} & set(argv):
        settings = read_settings([word for word in argv if word not in ("-h", "--help")])
        print("usage: hf-unlearn run [RECIPE.yaml] [key=value | --key value ...]\n")
        print("The settings, in the file or on the command line, which wins. For those of another method than auto:")
        print("hf-unlearn run --help method=NAME\n")
        print(recipe.help_text(recipe.method_of(settings).info.name))
        return
    steps.run(*recipe.parse(argv)).trainer.accelerator.end_training()
