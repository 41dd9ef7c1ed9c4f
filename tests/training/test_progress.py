"""What a run prints."""

from types import SimpleNamespace

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging

from hf_unlearn import models, unlearn
from hf_unlearn.training.progress import Bar, Printer, make_readable
from tests.samples import arguments, fitted, learnt
from tests.tiny import tiny_vit


class Mine(ProgressCallback):
    pass


def test_only_transformers_own_are_replaced():
    mine, table = Mine(), TrainerCallback()
    handler = SimpleNamespace(callbacks=[ProgressCallback(), mine, PrinterCallback(), table])
    make_readable(handler)
    assert [type(one) for one in handler.callbacks] == [Bar, Mine, Printer, TrainerCallback]
    assert handler.callbacks[1] is mine and handler.callbacks[3] is table


def test_a_run_prints_lines_and_no_dictionaries(tmp_path, capsys, monkeypatch):
    args = arguments(tmp_path, num_train_epochs=2, eval_strategy="epoch", logging_strategy="epoch")
    monkeypatch.setenv("COLUMNS", "60")
    unlearn(fitted(), **learnt(), method="lotus", args=args)
    printed, errors = capsys.readouterr()
    lines = [line for line in printed.splitlines() if "forget acc." in line]
    assert [line.partition(":")[0] for line in lines] == ["epoch 0", "epoch 1", "epoch 2"]
    assert [line for line in printed.splitlines() if len(line) > 60 and str(tmp_path) not in line] == []
    assert "\n  " in printed  # which is wrapped
    assert "{" not in printed and "model shards" not in errors and "Loading weights" not in errors


def test_a_user_s_hook_on_bars_stays(tmp_path):
    asked = []

    def hook(factory, args, kwargs):
        asked.append(kwargs["desc"])
        return factory(*args, **kwargs)

    before = logging.set_tqdm_hook(hook)
    try:
        models.save_model(tiny_vit(), tmp_path)
        assert asked == ["Writing model shards"] and logging.set_tqdm_hook(hook) is hook
    finally:
        logging.set_tqdm_hook(before)
