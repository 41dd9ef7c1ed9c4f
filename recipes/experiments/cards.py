"""The reference cards in `model_cards/`: three originals, unlearned, audited beside a retrained model, and released.

About 10 minutes on 2 cores. The repositories that the cards name do not exist.

    python recipes/experiments/cards.py              # all three
    python recipes/experiments/cards.py vit          # one of them
    python recipes/experiments/cards.py --render     # the cards and pages anew, from the figures that are there
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import digits
import newsgroups
from real_data import minilm
from torch.utils.data import ConcatDataset
from transformers import AutoTokenizer

from hf_unlearn import AuditReport, UnlearningArguments, unlearn
from hf_unlearn.audits.content import IN_MEMORY
from hf_unlearn.data.digits import Samples, load_digits
from hf_unlearn.hub.card import AUDIT, CARD, CONFIG, METRICS, RECEIPT, make_card
from hf_unlearn.hub.names import AUDIT_PAGE
from hf_unlearn.hub.release import name_models, prepare

CARDS = Path(__file__).parents[2] / "model_cards"
TEXTS, TOKENS = {"forget": 40, "retain": 160, "unseen": 300}, 32
KEPT = (METRICS, CONFIG, RECEIPT, AUDIT, AUDIT_PAGE, "tokenizer_config.json")  # beside the card; the weights are not
ABOUT = """
---

A reference card of hf_unlearn. The repository that it names does not exist; the figures are of a real run, made by

```bash
python recipes/experiments/cards.py {name}
```
"""
LICENCE = {"license": "apache-2.0"}  # what an original's card would say


def digits_model(name: str) -> Callable:
    return digits.fit(*digits.MODELS[name])


def few_texts(parts: dict[str, Samples]) -> dict[str, Samples]:
    """Fewer and shorter texts, so that the run takes minutes."""
    return {
        name: Samples(
            **{key: x[: TEXTS[name], :TOKENS] if x.ndim == 2 else x[: TEXTS[name]] for key, x in part.columns.items()}
        )
        for name, part in parts.items()
    }


# name -> repository, revision, method, level of the audit, data by seed, training by seed, processor, what a parent's card
# would say
RUNS: dict[str, dict[str, Any]] = {
    "vit": {
        "address": {"repo_id": "me/vit-digits", "revision": "unlearned/request-1"},
        "method": "lotus",
        "level": 1,
        "data": lambda: load_digits(seed=0),
        "fit": digits_model("vit"),
        "parent_card": LICENCE,
        "dataset": {"name": "sklearn.datasets.load_digits", "revision": None},
    },
    "timm": {
        "address": {"repo_id": "me/resnet-digits", "revision": "unlearned/request-1"},
        "method": "damp",
        "level": 1,
        "data": lambda: load_digits(seed=0, forget_class=3),
        "fit": digits_model("resnet"),
        "parent_card": LICENCE,
        "dataset": {"name": "sklearn.datasets.load_digits", "revision": None},
    },
    "text": {
        "address": {"repo_id": "me/minilm-newsgroups", "revision": "unlearned/request-1"},
        "method": "lotus",
        "level": 0,  # level 1 takes minutes more
        "data": lambda: few_texts(newsgroups.data(seed=0)),
        "fit": newsgroups.fit,
        "processor": lambda: AutoTokenizer.from_pretrained(minilm()),
        "parent_card": LICENCE | {"language": "en", "base_model": "sentence-transformers/all-MiniLM-L6-v2"},
        "dataset": {"name": "20 Newsgroups", "revision": None},
    },
}


def run(name: str) -> None:
    """Train, unlearn, audit and release; what can be read of the release goes to `model_cards/NAME`."""
    about = RUNS[name]
    data = about["data"]()
    original = about["fit"](ConcatDataset([data["forget"], data["retain"]]), 0)
    retrained = about["fit"](data["retain"], 100)
    processor = about["processor"]() if "processor" in about else None
    with tempfile.TemporaryDirectory() as folder:
        args = UnlearningArguments(
            f"{folder}/run", seed=0, save_strategy="no", logging_strategy="no", disable_tqdm=True
        )
        given = {"method": about["method"], "args": args, "processing_class": processor, "overlap": "allow"}
        result = unlearn(original, **data, **given)
        report = result.audit(level=about["level"], retrained=retrained)
        print(f"{name}\n{report.summary()}\n", flush=True)
        released = prepare(result, f"{folder}/release", **about["address"], report=report, dataset=about["dataset"])
        shutil.rmtree(CARDS / name, ignore_errors=True)
        (CARDS / name).mkdir(parents=True)
        for file in KEPT:
            if (released / file).is_file():
                shutil.copy(released / file, CARDS / name)
    render(name)


def render(name: str) -> None:
    """Write the card of a folder in `model_cards/`, and the page of its audit."""
    about = RUNS[name]
    report = AuditReport.from_json(CARDS / name / AUDIT)
    report.content["models"] = dict.fromkeys(report.content["models"], IN_MEMORY)
    name_models(report.content, **about["address"], parent=None)
    report.content["method"] = json.loads((CARDS / name / METRICS).read_text())["run"]["method"]
    report.to_html(CARDS / name / AUDIT_PAGE)
    card = make_card(CARDS / name, **about["address"], parent_card=about["parent_card"])
    (CARDS / name / CARD).write_text(f"{card}{ABOUT.format(name=name)}")


if __name__ == "__main__":
    chosen = [word for word in sys.argv[1:] if word != "--render"] or list(RUNS)
    for name in chosen:
        (render if "--render" in sys.argv else run)(name)
