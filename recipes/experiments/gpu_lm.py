"""Methods for language models on a GPU: tokens per second and peak memory beside plain fine-tuning, of a Llama of 1 billion weights.

    python recipes/experiments/gpu_lm.py          # under 12 minutes on an H200; without a GPU it says so and ends

In bfloat16, 8 forget and 8 retained texts of 512 tokens a step; attention by SDPA, and by FlashAttention 2 where that is installed;
torch.compile off and on. The weights are random, as speed does not depend on what they say: the shape is that of Llama-3.2-1B. It
writes `results/gpu-lm.json`; what it had no time for is named there.
"""

import gc
import itertools
import tempfile
import time
from importlib.util import find_spec
from typing import Any

import torch
from study import record
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback

from hf_unlearn.commands.language_speed import PLAIN, SIDES, make_trainer
from hf_unlearn.commands.speed import quiet

SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
GROUP, TOKENS = 8, 512
WARM, STEPS = 4, 12
MINUTES = 11  # no side is begun after so many
ROWS = (PLAIN, "npo", "npo, KL", "simnpo", "grad_diff", "rmu", "npo, LoRA", "npo, LoRA, checkpointing")


class Clock(TrainerCallback):
    """When each step has ended on the GPU."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def build(attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, max_position_embeddings=TOKENS, attn_implementation=attention)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def measure(name: str, attention: str, compiled: bool) -> dict[str, Any]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    about = {"model": build(attention), "group": GROUP, "bf16": True, "torch_compile": compiled}
    row: dict[str, Any] = {"side": name, "attention": attention, "compiled": compiled}
    with tempfile.TemporaryDirectory() as folder:
        try:
            side = None if name == PLAIN else SIDES[name]
            trainer = make_trainer(side, SHAPE["vocab_size"], TOKENS, WARM + STEPS, folder, **about)
            clock = Clock()
            trainer.add_callback(clock)
            trainer.train()
        except Exception as error:  # one side says why, and the others are measured
            return row | {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    seconds = (clock.ends[-1] - clock.ends[WARM - 1]) / STEPS
    tokens = 2 * GROUP * TOKENS / seconds
    return row | {"seconds": seconds, "tokens_per_second": tokens, "peak": torch.cuda.max_memory_allocated()}


def main() -> None:
    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured.")
        return
    quiet()
    attentions = ["sdpa"] + ["flash_attention_2"] * (find_spec("flash_attn") is not None)
    began, rows, left_out = time.monotonic(), [], []
    for compiled, attention, name in itertools.product((False, True), attentions, ROWS):
        if time.monotonic() - began > 60 * MINUTES:
            left_out.append({"side": name, "attention": attention, "compiled": compiled})
            continue
        row = measure(name, attention, compiled)
        plain = next(
            (r for r in rows if r["side"] == PLAIN and (r["attention"], r["compiled"]) == (attention, compiled)), row
        )
        if "error" not in row and "error" not in plain:
            row |= {"time": row["seconds"] / plain["seconds"], "memory": row["peak"] / plain["peak"]}
        print(row, flush=True)
        rows.append(row)
    record("gpu-lm", {"shape": SHAPE, "group": GROUP, "tokens": TOKENS, "rows": rows, "left_out": left_out})


if __name__ == "__main__":
    main()
