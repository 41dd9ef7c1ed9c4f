"""20 Newsgroups, 1,000 training texts of 48 tokens, all-MiniLM-L6-v2, 3 seeds: a tenth of the texts forgotten.

About 40 minutes on 2 cores. Data and weights come from a package registry, see `real_data.py`.
"""

import datasets
import numpy as np
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_unlearn.methods.lotus import LotusConfig
from real_data import minilm, newsgroups
from study import record, study, train

TRAIN, FORGET, UNSEEN, TOKENS = 1000, 100, 800, 48


def data(seed: int) -> datasets.DatasetDict:
    both, rng = newsgroups(), np.random.default_rng(seed)
    tokenizer = AutoTokenizer.from_pretrained(minilm())

    def processed(texts: datasets.Dataset, n: int) -> datasets.Dataset:
        chosen = texts.select(rng.permutation(len(texts))[:n])
        tokens = tokenizer(chosen["text"][:], truncation=True, padding="max_length", max_length=TOKENS)
        values = {**tokens, "labels": chosen["label"][:]}
        return datasets.Dataset.from_dict(values).with_format("torch")

    known = processed(both["train"], TRAIN)
    parts = {"forget": known.select(range(FORGET)), "retain": known.select(range(FORGET, TRAIN))}
    return datasets.DatasetDict(**parts, unseen=processed(both["test"], UNSEEN))


def fit(dataset: datasets.Dataset, seed: int):
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=20)
    arguments = {"learning_rate": 3e-4, "lr_scheduler_type": "linear", "per_device_train_batch_size": 32}
    return train(model, dataset, seed, num_train_epochs=8, **arguments)


if __name__ == "__main__":
    methods = {
        "finetune": ("finetune", {"num_train_epochs": 5}),
        "random_label": ("random_label", {}),
        "lotus (paper)": (LotusConfig.paper("vit"), {}),
        "lotus": ("lotus", {}),
    }
    record("newsgroups", {"minilm-instance": study(data, fit, methods)})
