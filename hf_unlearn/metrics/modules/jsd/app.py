"""A page to try the metric on: its inputs and its result as JSON."""

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr

EXAMPLE = {
    "predictions": [[1.0, 0.0], [0.5, 0.5]],
    "references": [[0.5, 0.5], [0.5, 0.5]],
}

metric = evaluate.load(str(Path(__file__).with_name("jsd.py")))


def compute(inputs: str) -> dict[str, Any]:
    return metric.compute(**json.loads(inputs))


page = gr.Interface(
    fn=compute,
    inputs=gr.Code(json.dumps(EXAMPLE, indent=2), language="json", label="inputs"),
    outputs=gr.JSON(label="result"),
    title="JSD",
    description=metric.description,
    article=metric.inputs_description,
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
