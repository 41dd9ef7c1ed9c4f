"""`hf-unlearn quickstart`: two small models on embedded data, unlearned and held beside retrained ones."""

import json
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..api import unlearn
from ..data.digits import load_digits
from ..metrics.tables import table
from ..models.small import small_resnet, small_vit
from ..training.arguments import UnlearningArguments

MODELS = {"resnet": (small_resnet, 30), "vit": (small_vit, 40)}  # how each is made, and for how many epochs trained
LEARNING_RATE = 2e-3
METHODS = ("finetune", "lotus", "auto")
READ_NEXT = """
JSD to retrained is the distance that matters; two models retrained with different seeds are not at 0 either. RF-JSD needs
no retrained model. MIA is the share of forget samples that an attack takes for members: closer to the retrained model's is better.

{output}/<model>/auto holds the unlearned models, {output}/results.json and results.md the table.
Next: your own model and data, in ten lines: README.md, "In a script". Every method: hf-unlearn methods.
"""


def train(
    model: PreTrainedModel, dataset: torch.utils.data.Dataset, epochs: int, seed: int, folder: Path
) -> PreTrainedModel:
    """Plain training, as the original and the retrained model get it."""
    args = TrainingArguments(
        str(folder),
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    Trainer(model, args, train_dataset=dataset).train()
    return model.eval()


def run(output: str = "quickstart", seed: int = 0) -> dict:
    """Runs the quickstart and returns its rows: model -> row -> figures."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(
        1
    )  # models this small gain nothing from more, and wait for each other where the cores are busy
    started = time.perf_counter()
    folder = Path(output)
    data = load_digits(seed)
    everything = torch.utils.data.ConcatDataset([data["forget"], data["retain"]])
    results = {}
    for name, (make, epochs) in MODELS.items():
        print(f"\n{name}: training the original on {len(everything)} digits, three in ten with a wrong label")
        original = train(make(seed), everything, epochs, seed, folder / name)
        print(f"{name}: retraining without the {len(data['forget'])} forget samples, for reference")
        since = time.perf_counter()
        retrained = train(make(seed + 1), data["retain"], epochs, seed + 1, folder / name)
        seconds = {"retrained": time.perf_counter() - since}
        rows, weights = {}, {key: value.clone() for key, value in original.state_dict().items()}
        for method in METHODS:
            print(f"{name}: {method}")
            original.load_state_dict(weights)
            known = {"original_epochs": epochs, "original_learning_rate": LEARNING_RATE} if method == "auto" else {}
            with tempfile.TemporaryDirectory() as run:  # the kept original, which nobody needs after the comparison
                args = UnlearningArguments(run, seed=seed, logging_strategy="no", save_strategy="no")
                result = unlearn(
                    original,
                    forget=data["forget"],
                    retain=data["retain"],
                    unseen=data["unseen"],
                    method=method,
                    args=args,
                    **known,
                )
                result.save(folder / name / method)
                compared = result.compare(retrained)
            rows |= {
                "original": compared["original"],
                "retrained": compared["retrained"],
                method: compared["unlearned"],
            }
            seconds[method] = result.runtime["unlearn"]
        for row, value in seconds.items():
            rows[row]["seconds"] = value
        results[name] = rows
    text = "\n\n".join(f"**{name}**\n\n{table(rows)}" for name, rows in results.items())
    (folder / "results.json").write_text(json.dumps({"command": "hf-unlearn quickstart", **results}, indent=2) + "\n")
    (folder / "results.md").write_text(text + "\n")
    print(f"\n{text}\n{READ_NEXT.format(output=output)}\n{time.perf_counter() - started:.0f} seconds")
    return results
