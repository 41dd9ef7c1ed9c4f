"""What the engine of gradient methods costs: a step with two whole gradients beside two plain forward-backward passes.

The sides take turns; what counts is the median of the ratios of turns that followed each other, in processor time of one
thread. `difference` is the engine with the cheapest rule there is, in the place of one of the gradients; `hamu` adds its
clipping, inner products and update (and not the two forward passes that log what the losses really did).
"""

import statistics
import sys
import tempfile
import time

import torch
from study import record
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from hf_unlearn import UnlearningArguments
from hf_unlearn.commands.speed import RandomSamples, build
from hf_unlearn.methods import HamuConfig, Method, MethodConfig, MethodInfo
from hf_unlearn.tasks.losses import cross_entropy
from hf_unlearn.training.context import Context
from hf_unlearn.training.trainer import UnlearningTrainer

BATCH = {"resnet18": 128, "bert-base": 8}  # images of 32 × 32, texts of 64 tokens
WANTED = 1.05


class Difference(Method):
    """g = g_retain − g_forget, in the place of g_retain."""

    info = MethodInfo("difference", "gradient", "the difference of two gradients", needs=("forget", "retain"))
    config_class = MethodConfig

    def __init__(self):
        super().__init__(MethodConfig())

    def arguments(self, family, width):
        return {"learning_rate": 1e-6, "optim": "sgd", "max_grad_norm": 0.0, "freeze_batchnorm": True}

    def epochs(self, epochs):
        return ["paired"] * epochs

    def losses(self, model, batch):
        for name in ("retain", "forget"):
            yield name, batch[name].mean(cross_entropy(model(**batch[name].inputs).logits, batch[name].labels))

    def combine(self, gradients):
        for r, f in zip(gradients["retain"], gradients["forget"], strict=True):
            r -= f
        return gradients["retain"]


def bert_base() -> PreTrainedModel:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_labels=10))


def trainer(model: PreTrainedModel, method, batch: int, folder: str) -> UnlearningTrainer:
    data = {f"{name}_dataset": RandomSamples(batch, model, 32, seed) for seed, name in enumerate(("forget", "retain"))}
    args = UnlearningArguments(
        folder, per_device_train_batch_size=batch, measure=False, disable_tqdm=True, max_steps=1
    )
    result = UnlearningTrainer(model, args, method=method, **data, overlap="allow")
    result.create_optimizer()
    result.method.prepare(Context(result))
    return result


def measure(name: str, turns: int) -> dict[str, dict[str, float]]:
    model = bert_base() if name == "bert-base" else build(name, 32)
    with tempfile.TemporaryDirectory() as folder:
        methods = {"difference": Difference(), "hamu": HamuConfig(realised=False)}
        trainers = {side: trainer(model, method, BATCH[name], folder) for side, method in methods.items()}
    batch = next(iter(trainers["hamu"].get_train_dataloader()))
    frozen = trainers["hamu"].frozen_batchnorm

    def plain():
        model.train()
        for module in frozen:
            module.eval()
        for part in ("retain", "forget"):
            model.zero_grad()
            cross_entropy(model(**batch[part].inputs).logits, batch[part].labels).mean().backward()

    def step(side: str):
        model.zero_grad()
        trainers[side].training_step(model, batch)

    sides = {"plain": plain, "plain again": plain}
    sides |= {side: lambda side=side: step(side) for side in trainers}
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(turns):
        for side, run in sides.items():
            since = time.thread_time()
            run()
            times[side].append(time.thread_time() - since)
    rows = {}
    for side, values in times.items():
        ratios = [value / plain for value, plain in zip(values, times["plain"], strict=True)]
        rows[side] = {"seconds": statistics.median(values), "ratio": statistics.median(ratios)}
        print(name, side, rows[side], flush=True)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    record("engine", {"wanted": WANTED, "rows": {name: measure(name, turns) for name in BATCH}})
