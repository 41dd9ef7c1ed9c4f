"""What a LoTUS step and a whole run cost beside plain fine-tuning, as `hf-unlearn benchmark` measures it.

About 10 minutes on 2 cores. Processor time of one thread is read, so that other work on the machine counts for less.
"""

import json
import tempfile
from pathlib import Path

from study import record

from hf_unlearn.commands.benchmark import main

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "benchmark.json")
        main(["--clock", "cpu", "--steps", "12", "--whole-run", "--runs", "1", "--json", str(path)])
        measured = json.loads(path.read_text())
    record("benchmark", {key: measured[key] for key in ("settings", "rows", "memory")})
