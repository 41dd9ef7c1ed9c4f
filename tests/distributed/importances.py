"""Importances of two processes, each with its share of the samples: of an odd number, so that one process has padding."""

import json
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file

from hf_unlearn.methods import SsdConfig
from hf_unlearn.models.weights import weights_digest
from hf_unlearn.surgery.ssd import importances, ssd_edit
from tests.surgery.test_ssd import FAMILIES, batches, samples, share


def main(folder: Path) -> None:
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    counts = {}
    for family, build in FAMILIES.items():
        model = build()
        forget, retain = (share(samples(model, n, seed=n), state.process_index, 2) for n in (9, 33))
        found = importances(model, batches(forget, 4), SsdConfig())
        report = ssd_edit(model, batches(forget, 4), batches(retain, 4), config=SsdConfig(alpha=2))
        assert len(set(gather_object([weights_digest(model)]))) == 1, f"{family}: the processes have parted"
        assert len(set(gather_object([json.dumps(report)]))) == 1
        counts[family] = {"samples": found.samples, "report": report}
        if state.is_main_process:
            save_file(found.values, folder / f"{family}.safetensors")
    # One sample, which one process alone has.
    alone = share(samples(model, 1), state.process_index, 2)
    assert importances(model, batches(alone, 4), SsdConfig()).samples == 1
    assert importances(model, batches(alone, 4) if state.is_main_process else [], SsdConfig()).how == "loop"
    if state.is_main_process:
        (folder / "counts.json").write_text(json.dumps(counts))
