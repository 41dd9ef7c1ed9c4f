"""Every experiment but that of `gpu.py`, one after the other, and then the tables of README and docs. Takes days on 2 cores."""

import subprocess
import sys
from pathlib import Path

EXPERIMENTS = (
    "quickstart.py",
    "compare.py",
    "benchmark.py",
    "digits.py",
    "cifar10.py",
    "newsgroups.py",
    "engine.py",
    "hamu.py",
    "quota.py",
    "multitask.py",
    "damp.py",
    "surgery_cost.py",
    "stories.py",
    "lora.py",
    "cards.py",
    "locality.py",
    "audits.py",
    "closeness.py",
    "closeness_audits.py",
    "closeness_estimates.py",
    "local_teacher.py",
    "memory.py",
    "before_first_step.py",
    "request_queue.py",
    "tofu.py",
    "lm_speed.py",
    "communication.py",
    "scaling.py",
    "gpu_lm.py",
    "tables.py",
)

if __name__ == "__main__":
    for name in EXPERIMENTS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / name)], check=True)
