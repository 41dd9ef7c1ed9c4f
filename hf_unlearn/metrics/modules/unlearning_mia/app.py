"""A page to try the metric on: its inputs and its result as JSON."""

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr

EXAMPLE = {
    "predictions": [0.1, 0.9, 0.9, 0.9, 0.1, 0.2, 0.1, 0.2, 0.8, 0.9, 0.8, 0.9],
    "references": 4 * ["forget"] + 4 * ["retain"] + 4 * ["unseen"],
}

metric = evaluate.load(str(Path(__file__).with_name("unlearning_mia.py")))


def compute(inputs: str) -> dict[str, Any]:
    return metric.compute(**json.loads(inputs))


page = gr.Interface(
    fn=compute,
    inputs=gr.Code(json.dumps(EXAMPLE, indent=2), language="json", label="inputs"),
    outputs=gr.JSON(label="result"),
    title="Unlearning MIA",
    description=metric.description,
    article=metric.inputs_description,
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
