"""A page to try the metric on: its inputs and its result as JSON."""

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr

EXAMPLE = {
    "predictions": [0.99, 0.99, 0.91, 0.83],
    "references": [0.91, 0.99, 0.91, 0.76],
    "figure": ["forget_accuracy", "retain_accuracy", "unseen_accuracy", "mia"],
}

metric = evaluate.load(str(Path(__file__).with_name("avg_gap.py")))


def compute(inputs: str) -> dict[str, Any]:
    return metric.compute(**json.loads(inputs))


page = gr.Interface(
    fn=compute,
    inputs=gr.Code(json.dumps(EXAMPLE, indent=2), language="json", label="inputs"),
    outputs=gr.JSON(label="result"),
    title="Average gap",
    description=metric.description,
    article=metric.inputs_description,
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
