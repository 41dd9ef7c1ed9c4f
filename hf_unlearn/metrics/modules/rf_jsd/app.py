"""A page to try the metric on: its inputs and its result as JSON."""

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr

EXAMPLE = {
    "predictions": [[0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.3, 0.7]],
    "references": [0, 0, 0, 1],
    "is_forget": [True, True, False, False],
}

metric = evaluate.load(str(Path(__file__).with_name("rf_jsd.py")))


def compute(inputs: str) -> dict[str, Any]:
    return metric.compute(**json.loads(inputs))


page = gr.Interface(
    fn=compute,
    inputs=gr.Code(json.dumps(EXAMPLE, indent=2), language="json", label="inputs"),
    outputs=gr.JSON(label="result"),
    title="RF-JSD",
    description=metric.description,
    article=metric.inputs_description,
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
