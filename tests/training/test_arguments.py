"""Training arguments: what is given is taken as transformers takes it, has an effect, or is refused in one sentence."""

import numpy as np
import pytest

from hf_unlearn import UnlearningArguments, UnlearningError
from hf_unlearn.training.checks import check_values


def made(**changes):
    return UnlearningArguments(output_dir="out", report_to="none", **changes)


@pytest.mark.parametrize("fsdp", [None, False, True, "", "full_shard auto_wrap", ["full_shard"]])
def test_fsdp_as_transformers_takes_it(fsdp):
    args = made(fsdp=fsdp, fsdp_config={"version": 2} if fsdp else None)
    check_values(args)
    assert bool(args.fsdp) == bool(fsdp)


def test_fsdp_that_is_neither():
    with pytest.raises(UnlearningError, match="fsdp is 3; expected true or false, or text"):
        made(fsdp=3)


def test_flags_of_numpy():
    assert made(bf16=np.False_).bf16 is False


def test_a_split_seed_below_zero():
    with pytest.raises(UnlearningError, match="split_seed is -1; expected 0 or more"):
        check_values(made(split_seed=-1))
