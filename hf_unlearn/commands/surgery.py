"""print where a model would be edited, as damp does: surgery plan MODEL"""

from collections.abc import Sequence

from ..errors import UnlearningError
from .text import command_parser


def main(argv: Sequence[str]) -> None:
    parser = command_parser("surgery", __doc__)
    parser.add_argument("what", choices=("plan",), help="plan: the operators that read the activation of each stage")
    parser.add_argument("model", help="a Hub id or a local folder")
    parser.add_argument(
        "--stages",
        default="5",
        help="into how many the network is cut, if it has so many cuts, or the operators of each: [[layer], ..., [classifier]]",
    )
    parser.add_argument(
        "--readers",
        choices=("next", "all_residual"),
        default="next",
        help="the first readers only, or all up to the next stage",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    options = parser.parse_args(argv)
    import yaml

    from .. import models
    from ..surgery.damp import DampConfig
    from ..surgery.operators import example_inputs, find_plan

    try:
        stages = yaml.safe_load(options.stages)
    except yaml.YAMLError:
        raise UnlearningError(f"--stages is {options.stages!r}; expected a number, or lists in a list.") from None
    DampConfig(stages=stages)
    model = models.load_model(options.model, revision=options.revision)
    try:
        print(find_plan(model, example_inputs(model), stages, options.readers))
    except UnlearningError:
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise UnlearningError(
            f"{type(model).__name__} does not run on a random sample of the kind that its config tells of ({error}); call "
            "hf_unlearn.surgery.find_plan with a sample of your data."
        ) from error
