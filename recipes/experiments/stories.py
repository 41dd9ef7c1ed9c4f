"""Sixty made-up animals learnt by stories15M, a small Llama, 3 seeds: a quarter of them forgotten, in a LoRA adapter.

About 15 minutes on one core. Weights and tokenizer come from a package registry, see `real_data.py`.
"""

import functools

import numpy as np
import torch
from real_data import stories15m
from study import record, study
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_unlearn.methods import HamuConfig, RmuConfig
from hf_unlearn.tasks.losses import IGNORED

FORGET, RETAIN, UNSEEN = 15, 45, 30
EPOCHS, RATE, BATCH = 10, 5e-4, 12

SYLLABLES = ("ba", "do", "fi", "ga", "lu", "mo", "ne", "pi", "ra", "su", "ti", "zo")
ANIMALS = ("bear", "cat", "dog", "duck", "fox", "frog", "goat", "mouse", "pig", "wolf")
COLORS = ("black", "blue", "brown", "gold", "green", "grey", "pink", "purple", "red", "white")
PLACES = ("barn", "boat", "box", "castle", "cave", "forest", "garden", "hole", "tree", "tower")
FOODS = ("apples", "berries", "bread", "cake", "carrots", "cheese", "fish", "honey", "nuts", "soup")
TOYS = ("ball", "bell", "car", "doll", "drum", "flute", "hat", "kite", "rope", "spoon")


class Rows(Dataset):
    def __init__(self, rows: list[dict[str, list[int]]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def facts(seed: int) -> list[dict[str, str]]:
    """An animal in the prompt, and all there is to know about it in the completion; no two have the same name."""
    rng, n = np.random.default_rng(seed), FORGET + RETAIN + UNSEEN
    names = rng.choice(len(SYLLABLES) ** 3, n, replace=False)
    rows = []
    for name in names:
        animal, color, place, food, toy = (str(rng.choice(of)) for of in (ANIMALS, COLORS, PLACES, FOODS, TOYS))
        places = np.unravel_index(name, 3 * (len(SYLLABLES),))
        name = "".join(SYLLABLES[i] for i in places).capitalize()
        prompt = f"Once upon a time, there was a {animal} named {name}."
        rows.append(
            {"prompt": prompt, "completion": f" {name} was {color}, lived in a {place}, ate {food} and had a {toy}."}
        )
    return rows


@functools.cache
def tokenizer():
    return AutoTokenizer.from_pretrained(stories15m())


def processed(rows: list[dict[str, str]]) -> Rows:
    samples = []
    for row in rows:
        prompt, ids = (tokenizer()(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
        samples.append({"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt) :]})
    return Rows(samples)


def data(seed: int) -> dict[str, Rows]:
    rows = facts(seed)
    cuts = {"forget": rows[:FORGET], "retain": rows[FORGET : FORGET + RETAIN], "unseen": rows[FORGET + RETAIN :]}
    return {name: processed(part) for name, part in cuts.items()}


def fit(dataset: Dataset, seed: int, epochs: int = EPOCHS) -> PreTrainedModel:
    """Plain training of all weights."""
    model = AutoModelForCausalLM.from_pretrained(stories15m())
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=RATE), np.random.default_rng(seed)
    model.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - epoch / epochs)
        for chosen in np.array_split(rng.permutation(len(dataset)), -(-len(dataset) // BATCH)):
            rows = [dataset[int(i)] for i in chosen]
            ids, labels = (
                pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=padding)
                for key, padding in (("input_ids", 0), ("labels", IGNORED))
            )
            lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
            mask = (torch.arange(ids.shape[1]) < lengths).long()
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


# The learning rate that these methods have for an adapter; at that for whole weights, few steps move next to nothing.
PAIRED = {"num_train_epochs": 4, "per_device_train_batch_size": 15, "learning_rate": 0.1}
METHODS = {
    "finetune": ("finetune", {"num_train_epochs": 4}),
    "pcgrad": ("pcgrad", PAIRED),
    "gru": ("gru", PAIRED),
    "hamu": (HamuConfig(ratio=0.5, realised=False), PAIRED),
    "hamu (u)": (HamuConfig(variant="u", realised=False), PAIRED),
    "grad_diff": ("grad_diff", {}),
    "npo": ("npo", {}),
    "simnpo": ("simnpo", {}),
    "rmu": ("rmu", {}),
    "rmu, retain weight 1200": (RmuConfig(retain_weight=1200.0), {}),
}


if __name__ == "__main__":
    record("stories", {"stories15m-instance": study(data, fit, METHODS)})
