"""HAMU on digits with flipped labels, 3 seeds, beside the other rules on two gradients: 150 samples, or a whole class, forgotten.

All ascend on the cross-entropy, and HAMU has the paper's radius and the learning rate that goes with it.

python recipes/experiments/hamu.py
"""

import torch
from digits import MODELS, fit
from study import record, study

from hf_unlearn.data.digits import load_digits
from hf_unlearn.methods import GruConfig, HamuConfig, OrthogradConfig, PcgradConfig

PLAIN = {"objective": "ce", "radius": "retain"}
METHODS = {
    "finetune": ("finetune", {}),
    "gru": (GruConfig(objective="ce"), {}),
    "pcgrad": (PcgradConfig(objective="ce"), {}),
    "orthograd": (OrthogradConfig(objective="ce"), {}),
    "hamu (paper)": (HamuConfig.paper(), {}),
    "hamu, ratio 0.5": (HamuConfig(ratio=0.5, **PLAIN), {"learning_rate": 0.03}),
    "hamu-u": (HamuConfig(variant="u", **PLAIN), {"learning_rate": 0.03}),
    "hamu": (HamuConfig(**PLAIN), {"learning_rate": 0.03}),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {}
    for name, (make, epochs, _) in MODELS.items():
        results[f"{name}-instance"] = study(load_digits, fit(make, epochs), METHODS)
        by_class = {row: METHODS[row] for row in ("finetune", "gru", "pcgrad", "hamu")}
        results[f"{name}-class"] = study(
            lambda seed: load_digits(seed, forget_class=seed), fit(make, epochs), by_class
        )
    record("hamu", results)
