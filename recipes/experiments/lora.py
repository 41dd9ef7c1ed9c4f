"""In the weights or in a LoRA adapter: digits with flipped labels, instances, a small timm ResNet and a small ViT, 3 seeds.

The adapter is that of `peft_config=True`, once with the learning rate it has by default, once with that of the weights.
"""

from digits import MODELS, fit
from study import record, study

from hf_unlearn import get_method
from hf_unlearn.data.digits import load_digits

METHODS = ("lotus", "random_label", "bad_teacher", "scrub", "gradient_ascent", "neggrad_plus", "local_teacher")
FAMILIES = {"resnet": "convolutional", "vit": "transformer"}
ADAPTER, PLAIN = "adapter", "adapter, rate of the weights"


def rows(model: str) -> dict[str, tuple]:
    found = {}
    for name in METHODS:
        make, _ = MODELS[model]
        width = getattr(make(0).config, "hidden_size", 768)
        rate = get_method(name)().arguments(FAMILIES[model], width)["learning_rate"]
        found |= {
            name: (name, {}),
            f"{name}, {ADAPTER}": (name, {}),
            f"{name}, {PLAIN}": (name, {"learning_rate": rate}),
        }
    return found


if __name__ == "__main__":
    results = {}
    for name, (make, epochs) in MODELS.items():
        results[name] = study(
            load_digits, fit(make, epochs), rows(name), peft_config=lambda row: ADAPTER in row or None
        )
    record("lora", results)
