"""What is given to an audit, by name or in person, opened: its models, its sets, and the context that they make."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .. import models
from ..data.collator import Collator
from ..data.overlap import check_overlaps
from ..data.samples import DrawnSamples, TrainingCollator, is_deterministic
from ..data.source import Columns, Source
from ..data.splits import split_unseen
from ..data.types import Data, ProcessingClass
from ..errors import UnlearningError
from ..models.adapters import Adapter, is_adapted, is_plain_lora, is_quantized, merged, tuner_layers
from ..tasks.base import Task
from ..tasks.checks import check_samples, number_classes
from ..tasks.evaluation import Evaluator
from ..training.record import Run
from ..training.sharding import Sharding, is_cut
from .content import IN_MEMORY
from .context import AuditContext
from .split import Split

RETAINED = 10_000  # samples that are measured at most


# ---------------------------------------------------------------------------------------------------------------------
# Models


def open_model(model: nn.Module | str | Path, name: str, sharding: Sharding | None = None) -> nn.Module:
    """The model, without adapters; loaded where a name is given, and cut up where those of the run are."""
    if isinstance(model, (str, Path)):
        repo, revision = models.split_revision(model)
        model = models.load_model(repo, revision=revision)
        if is_adapted(model) and not is_quantized(model):  # nobody else has it
            model = model.merge_and_unload(safe_merge=True).requires_grad_(True)
    if not isinstance(model, nn.Module):
        raise UnlearningError(f"{name} is a {type(model).__name__}; expected a model, a Hub id or a local folder.")
    if sharding and not is_cut(model):
        return sharding.of_whole(without_adapter(model))
    return without_adapter(model, sharding)


def without_adapter(model: nn.Module, sharding: Sharding | None = None) -> nn.Module:
    """A model with an adapter as one without, that its weights can be compared."""
    models.keep_unpacked(model)
    if not is_adapted(model):
        return model
    return sharding.merged(model) if sharding else merged(model)


def models_of_run(run: Run, unlearned: nn.Module) -> dict[str, nn.Module]:
    """The original and the unlearned model of a run; of a language model's adapter the same one, with that switched off and on,
    and of what it came with before too. Else copies without adapters."""
    in_place = run.task.lora and run.adapter and unlearned is run.model and not run.sharding
    in_place = in_place and all(map(is_plain_lora, tuner_layers(unlearned)))
    in_place = in_place and not any(isinstance(module, AuxiliaryTrainingWrapper) for module in unlearned.modules())
    if in_place and not isinstance(models.pretrained(unlearned).get_output_embeddings(), BaseTunerLayer):
        view = models.View(cast(PeftModel, unlearned), cast(Adapter, run.adapter).disabled)
        return {"original": view, "unlearned": unlearned}
    with run.original() as original:  # under an adapter, the same model with that switched off
        loaded = {"original": without_adapter(original, run.sharding)}
    return loaded | {"unlearned": without_adapter(unlearned, run.sharding)}


def processor_of(
    given: Mapping[str, nn.Module | str | Path | None], loaded: Mapping[str, nn.Module]
) -> ProcessingClass | None:
    """What the original, or else the unlearned model, comes with; None where neither is given by name."""
    for name in ("original", "unlearned"):
        if isinstance(model := given[name], str):
            repo, revision = models.split_revision(model)
            if (processor := models.load_processor(repo, loaded[name], revision)) is not None:
                return processor
    return None


def name_of(given: nn.Module | str | Path | None, model: nn.Module) -> str:
    """A Hub id, or the last part of a path: where it lies on this machine is nobody's business. `IN_MEMORY` where it has none."""
    base = models.base_of(model)
    name = str(given) if isinstance(given, (str, Path)) else cast(PreTrainedModel, base).config.name_or_path
    if not name:
        return IN_MEMORY
    return Path(name).resolve().name if Path(name).exists() or Path(name).is_absolute() else name


# ---------------------------------------------------------------------------------------------------------------------
# Data


def open_sets(
    sets: Mapping[str, Data | None],
    task: Task,
    original: nn.Module,
    processing_class: ProcessingClass | None,
    columns: Columns | None,
    overlap: str,
    seed: int,
) -> tuple[DrawnSamples, Collator]:
    """Those of the sets that are given, checked before any compute, and what makes model inputs of their rows."""
    sources = {name: _source(data, name, columns, task) for name, data in sets.items() if data is not None}
    number_classes(sources.values(), cast(PreTrainedConfig, task.config))  # which a classifier has
    if "forget" not in sources:
        raise UnlearningError("The forget set is not given; pass the samples that had to go as forget=.")
    if overlap == "error":
        check_overlaps(sources)
    collator = task.collator(sources["forget"], processing_class, None)
    for source in sources.values():
        collator.check(source)
    check_samples(sources.values(), collator, original)
    collator.sizes(sources)  # which refuses samples of which nothing counts
    fixed = all(is_deterministic(source, collator) for source in sources.values())
    return DrawnSamples(sources, seed=seed, seeded=not fixed), collator


def _source(data: Data, name: str, columns: Columns | None, task: Task) -> Source:
    source = Source(data, name, columns, layout=task.layout)
    if source.is_stream:
        raise UnlearningError(f"{name} is a stream; expected a datasets.Dataset, or a torch Dataset of dicts.")
    if len(source) == 0:
        raise UnlearningError(f"The {name} set is empty; expected at least one sample.")
    return source


def _measured(sources: dict[str, Source], seed: int, split_seed: int | None) -> dict[str, tuple[str, np.ndarray]]:
    sets = {"forget": ("forget", np.arange(len(sources["forget"])))}
    if "retain" in sources:
        size = len(sources["retain"])
        drawn = np.random.default_rng([seed, 3]).choice(size, min(size, RETAINED), replace=False)
        sets["retain"] = ("retain", np.sort(drawn))
    if "test" in sources:
        sets["unseen"] = ("test", np.arange(len(sources["test"])))
    elif "unseen" in sources:
        sets["unseen"] = ("unseen", split_unseen(sources["unseen"].labels, cast(int, split_seed))[1])
    return {name: of for name, of in sets.items() if len(of[1])}


def _is_class(sources: dict[str, Source], task: Task) -> bool:
    if not task.has_classes or "retain" not in sources:
        return False
    return not np.isin(sources["forget"].labels, sources["retain"].labels).any()


# ---------------------------------------------------------------------------------------------------------------------
# Both


def make_context(
    loaded: dict[str, nn.Module],
    task: Task,
    samples: DrawnSamples,
    collator: Collator,
    split: Split,
    seed: int,
    batch_size: int | None,
    base_model: str | None,
) -> AuditContext:
    """Of models and sets that were given; the models are on the device then."""
    accelerator = Accelerator()
    for model in loaded.values():
        model.to(accelerator.device)
    size = batch_size or task.eval_batch_size(128, 8)
    evaluator = task.evaluator(accelerator, samples, TrainingCollator(collator), batch_size=size)
    sets = _measured(samples.sources, seed, split.seed)
    return _context(
        loaded, evaluator, sets, task, _is_class(samples.sources, task), seed=seed, split=split, base_model=base_model
    )


def context_of_run(run: Run, loaded: dict[str, nn.Module], base_model: str | None) -> AuditContext:
    """With what the run has measured, the unseen samples being those that could not steer it."""
    for model in loaded.values():
        if not is_cut(model):
            model.to(run.device)
    sets = {"unseen" if name == "evidence" else name: of for name, of in run.indices.items() if name != "control"}
    return _context(
        loaded,
        run.evaluator,
        sets,
        run.task,
        run.is_class,
        seed=run.seeds["unlearning"],
        split=Split(run.seeds["split"]),
        base_model=base_model,
    )


def _context(
    loaded: dict[str, nn.Module],
    evaluator: Evaluator,
    sets: dict[str, tuple[str, np.ndarray]],
    task: Task,
    is_class: bool,
    **about: Any,
) -> AuditContext:
    sources = evaluator.samples.sources
    labels = {
        name: sources[source].labels[rows] for name, (source, rows) in sets.items() if not sources[source].is_stream
    }  # of a stream they come with the pass
    return AuditContext(
        models={name: model for name, model in loaded.items() if name != "reference"},
        reference=loaded.get("reference"),
        evaluator=evaluator,
        sets=sets,
        labels=labels,
        is_class=is_class,
        task=task,
        num_labels=evaluator.num_labels,
        collator=evaluator.collator.collator,
        **about,
    )
