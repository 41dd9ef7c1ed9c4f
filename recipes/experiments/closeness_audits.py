"""What an audit of level 1 finds in what `auto` and `rewind` leave behind, beside what it finds in retrained models.

    python recipes/experiments/closeness_audits.py [--cases digits] [--requests scattered] [--seeds 0 1]

Cases, requests and models are those of `closeness.py`, methods at their defaults with a budget of 0.2. A row holds the outcome
of the audit, the tests that fail, and its figures. The test half of the unseen samples judges, which
no method has read. Every row is kept in the cache, so that what was broken off goes on.
"""

import argparse
import itertools
import json
from typing import Any

import cases
import torch
from closeness import commit, is_trained, sets, unlearned
from study import record

from hf_unlearn import audit
from hf_unlearn.audits import AuditReport
from hf_unlearn.models import load_model

METHODS = ("auto", "rewind")


def row(report: AuditReport) -> dict[str, Any]:
    verdict, figures = report.content["verdict"], report.content["figures"]
    return {
        "outcome": verdict["outcome"],
        "fails": {one["name"]: one["kind"] for one in verdict["findings"] if one["fails"]},
        "tests": sum(one["p_corrected"] is not None for one in verdict["findings"]),
        "figures": figures,
        "seconds": report.content["cost"]["seconds"],
        "commit": commit(),
    }


def audits(name: str, request: str, seed: int, which: str) -> dict[str, Any]:
    data = cases.parts(name, request, seed)
    if which in METHODS:
        with unlearned(name, seed, which, 0.2, data) as result:
            return row(result.audit(level=1))
    retrained = cases.model_of(name, seed, request, int(which[-1]))
    models = [load_model(place) for place in (cases.model_of(name, seed), retrained)]
    return row(audit(*models, **sets(data), level=1, overlap="allow"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(cases.CASES), choices=list(cases.CASES))
    parser.add_argument("--requests", nargs="+", default=list(cases.REQUESTS), choices=list(cases.REQUESTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(cases.SEEDS)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.nn.Conv2d._conv_forward = cases.convolve_small
    folder = cases.cache_folder() / "closeness" / "audits"
    folder.mkdir(parents=True, exist_ok=True)
    names = [*METHODS, *(f"retrained{again}" for again in range(cases.RETRAINED))]
    for seed, name, request, which in itertools.product(options.seeds, options.cases, options.requests, names):
        file = folder / f"{name}-{request}-{seed}-{which}.json"
        if file.exists() or not is_trained(name, request, seed):
            continue
        about = {"case": name, "request": request, "seed": seed, "of": which}
        found = about | audits(name, request, seed, which)
        file.write_text(json.dumps(found, indent=1))
        seconds = found["seconds"]["total"]
        print(name, request, seed, which, found["outcome"], found["fails"], f"{seconds:.0f} s", flush=True)
    record("closeness_audits", {"rows": [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]})
