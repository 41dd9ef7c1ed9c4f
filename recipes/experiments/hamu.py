"""HAMU at its defaults beside the rules that ascend on the same bounded objective: does it forget, and what does it cost the retained?

    python recipes/experiments/hamu.py [--cases digits digits-vit cifar10-small cifar10-vit] [--requests scattered class] [--seeds 0 1]

Small models of `cases.py` and `local_teacher.py`: of digits with wrong labels, on which the defaults were chosen, and of 2,000
images of CIFAR-10, by which they are judged. `aim` is the accuracy of the original on the unseen samples that steer, 0 where a whole
class goes; `epochs` are those that were used of 20. Every run is kept in the cache and not made again, so a study that was broken
off goes on; a row names the commit that made it.
"""

import argparse
import itertools
import json
import tempfile
from typing import Any

import cases
import closeness
import local_teacher
import torch
from real_data import cache_folder
from study import commit, record

from hf_unlearn import UnlearningArguments, unlearn
from hf_unlearn.data.splits import SPLIT_SEED
from hf_unlearn.methods import HamuConfig, MethodConfig
from hf_unlearn.models import load_model
from hf_unlearn.models.small import small_vit

RETRAINED = 2
METHODS: dict[str, str | MethodConfig] = {
    "hamu": "hamu",
    "pcgrad": "pcgrad",
    "gru": "gru",
    "neggrad_plus": "neggrad_plus",
    "hamu, no repair": HamuConfig(then="end"),
    "hamu, LoRA": HamuConfig(),
    "hamu (paper)": HamuConfig.paper(),
    "hamu, ratio 0.1": HamuConfig(ratio=0.1),
    "hamu, ratio 0.7": HamuConfig(ratio=0.7),
}
CHOICE = ("hamu, ratio 0.1", "hamu, ratio 0.7")  # only where defaults were chosen
cases.CASES["cifar10-vit"] = cases.Case(
    cases.images, lambda: small_vit(local_teacher.drawn()), size=2_000, epochs=30, rate=2e-3, batch_size=64,
    sgd=False, unseen=2_000,
)  # fmt: skip
CHOSEN_ON = ("digits", "digits-vit")
CASES = ("digits", "digits-vit", "cifar10-small", "cifar10-vit")


def run(name: str, request: str, seed: int, row: str) -> dict[str, Any]:
    """The figures of one run, or of the original or a retrained model."""
    data = cases.parts(name, request, seed)
    again = [load_model(cases.model_of(name, seed, request, i)) for i in range(RETRAINED)]
    retrained = [closeness.outputs(model, data) for model in again]
    if row == "retrained":
        return closeness.beside(retrained[0], retrained[1:], data)
    model = load_model(cases.model_of(name, seed))
    if row == "original":
        return closeness.beside(closeness.outputs(model, data), retrained, data)
    with tempfile.TemporaryDirectory() as folder:
        args = UnlearningArguments(
            folder, seed=seed, save_strategy="no", report_to="none", disable_tqdm=True, measure=False, split_seed=SPLIT_SEED
        )  # fmt: skip
        about = {"method": METHODS[row], "args": args, "overlap": "allow", "peft_config": row.endswith("LoRA") or None}
        result = unlearn(model, **closeness.sets(data), **about)
    method, state = result.trainer.method, result.trainer.state
    return closeness.beside(closeness.outputs(result.model, data), retrained, data) | {
        "aim": method.accuracy_aim if method.looks else None,
        "epochs": state.epoch,
        "steps": state.global_step,
        "notes": method.notes,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--requests", nargs="+", default=["scattered", "class"], choices=cases.REQUESTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.nn.Conv2d._conv_forward = cases.convolve_small
    kept = cache_folder() / "hamu"
    for request, seed, name in itertools.product(options.requests, options.seeds, options.cases):
        for row in ("original", "retrained", *METHODS):
            file = kept / name / request / f"seed{seed}" / f"{row}.json"
            if file.exists() or (row in CHOICE and name not in CHOSEN_ON):
                continue
            about = {"case": name, "request": request, "seed": seed, "row": row, "commit": commit()}
            found = run(name, request, seed, row)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(about | found))
            print(
                *about.values(),
                {k: v and round(v, 3) for k, v in found.items() if k != "notes"},
                found.get("notes"),
                flush=True,
            )
    order = {row: i for i, row in enumerate(("original", "retrained", *METHODS))}
    rows = [json.loads(file.read_text()) for file in kept.glob("*/*/*/*.json")]
    rows.sort(key=lambda r: (CASES.index(r["case"]), cases.REQUESTS.index(r["request"]), r["seed"], order[r["row"]]))
    record("hamu", {"rows": rows})
