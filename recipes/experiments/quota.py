"""What HAMU's quota buys, for 3 seeds of two small models that are still learning (a sixth of their epochs).

    python recipes/experiments/quota.py

- `rows`, `r_squared`: the forget loss gained in five steps against Q/η, where the gradients of forget and retained samples
  point the same way and the quota binds; small steps, since the gain is of first order
- `same`: forget set and retained set are the same samples: damage should be called unavoidable at the first step
- `easy`: a whole class is forgotten: both losses should improve
"""

import tempfile
from typing import Any

import numpy as np
import torch
from digits import MODELS, fit
from study import record
from torch.utils.data import ConcatDataset
from transformers import PreTrainedModel

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.data.digits import Samples, load_digits
from hf_unlearn.methods import HamuConfig

PLAIN = {"objective": "ce", "radius": "retain", "until": "end"}


def steps(
    model: PreTrainedModel, parts: dict[str, Samples], config: HamuConfig, n: int, rate: float
) -> dict[str, Any]:
    """What n steps, each over all retained samples and as many forget ones, do to both losses, and what they log."""
    with tempfile.TemporaryDirectory() as folder:
        args = UnlearningArguments(
            folder, max_steps=n, learning_rate=rate, per_device_train_batch_size=len(parts["retain"]), save_strategy="no",
            logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        data = {f"{name}_dataset": part for name, part in parts.items()}
        trainer = UnlearningTrainer(model, args, method=config, overlap="allow", **data)
        trainer.train()
    after, before = trainer.unlearned, trainer.original
    return {
        "forget": after["forget"].mean("loss") - before["forget"].mean("loss"),
        "retain": after["retain"].mean("loss") - before["retain"].mean("loss"),
        "logs": [line for line in trainer.state.log_history if "hamu_c" in line],
        "notes": trainer.method.notes,
    }


def r_squared(x: list[float], y: list[float]) -> float:
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def quota(name: str, seed: int, rate: float = 1e-4) -> dict[str, Any]:
    """The linearity, the easy case and the same samples on both sides, for one model and seed."""
    make, epochs = MODELS[name]

    def young(parts: dict[str, Samples]) -> PreTrainedModel:
        return fit(make, epochs // 6)(ConcatDataset([parts["forget"], parts["retain"]]), seed)

    parts = {key: part for key, part in load_digits(seed, flipped=0.0).items() if key != "unseen"}
    model = young(parts)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    rows = []
    for c in np.linspace(0.1, 0.9, 9):
        model.load_state_dict(weights)
        found = steps(model, parts, HamuConfig(ratio=float(c), **PLAIN), 5, rate)
        reachable = np.mean([line["hamu_asked"] / line["hamu_c"] for line in found["logs"]])
        blocks = {
            branch: np.mean([line[f"hamu_{branch}"] for line in found["logs"]]) for branch in ("direct", "rectified")
        }
        kappa = float(np.mean([line["hamu_kappa"] for line in found["logs"]]))
        rows.append(
            {
                "ratio": float(c * reachable),
                "kappa": kappa,
                **blocks,
                "forget": found["forget"],
                "retain": found["retain"],
            }
        )
    binds = [row for row in rows if row["rectified"] > row["direct"]]
    model.load_state_dict(weights)
    both = steps(model, parts | {"retain": parts["forget"]}, HamuConfig(ratio=0.1, **PLAIN), 1, rate)
    whole = {key: part for key, part in load_digits(seed, flipped=0.0, forget_class=seed).items() if key != "unseen"}
    easy = steps(young(whole), whole, HamuConfig(ratio=0.1, **PLAIN), 10, 0.003)
    print(
        name,
        seed,
        "R²",
        r_squared([r["ratio"] for r in binds], [r["forget"] for r in binds]),
        easy["forget"],
        easy["retain"],
    )
    return {
        "rows": rows,
        "r_squared": r_squared([row["ratio"] for row in binds], [row["forget"] for row in binds]),
        "points": len(binds),
        "same": {"unavoidable_at_step_0": bool(both["logs"][0]["hamu_unavoidable"]), "notes": both["notes"]},
        "easy": {"forget": easy["forget"], "retain": easy["retain"]},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    record("quota", {name: [quota(name, seed) for seed in range(3)] for name in MODELS})
