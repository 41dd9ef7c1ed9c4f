"""20 Newsgroups, 600 training texts of 48 tokens, all-MiniLM-L6-v2, 3 seeds: a tenth of the texts forgotten.

About 15 minutes on 2 cores. Data and weights come from a package registry, see `real_data.py`.
"""

import datasets
import numpy as np
import torch
from real_data import minilm, newsgroups
from study import record, study, train
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_unlearn.data.digits import Samples
from hf_unlearn.methods.lotus import LotusConfig

TRAIN, FORGET, UNSEEN, TOKENS = 600, 60, 600, 48


def data(seed: int) -> dict[str, Samples]:
    both, rng = newsgroups(), np.random.default_rng(seed)
    tokenizer = AutoTokenizer.from_pretrained(minilm())

    def processed(texts: datasets.Dataset, rows: np.ndarray) -> Samples:
        texts = texts.select(rows)
        length = {"truncation": True, "padding": "max_length", "max_length": TOKENS}
        tokens = tokenizer(texts["text"][:], return_tensors="pt", **length)
        return Samples(**tokens, labels=torch.tensor(texts["label"][:]))

    chosen = rng.permutation(len(both["train"]))[:TRAIN]
    return {
        "forget": processed(both["train"], chosen[:FORGET]),
        "retain": processed(both["train"], chosen[FORGET:]),
        "unseen": processed(both["test"], rng.permutation(len(both["test"]))[:UNSEEN]),
    }


def fit(dataset: torch.utils.data.Dataset, seed: int):
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=20)
    arguments = {"learning_rate": 3e-4, "lr_scheduler_type": "linear", "per_device_train_batch_size": 32}
    return train(model, dataset, seed, num_train_epochs=8, **arguments)


if __name__ == "__main__":
    methods = {
        "finetune": ("finetune", {}),
        "random_label": ("random_label", {}),
        "lotus (paper)": (LotusConfig.paper("vit"), {}),
        "lotus": ("lotus", {}),
    }
    record("newsgroups", {"minilm-instance": study(data, fit, methods)})
