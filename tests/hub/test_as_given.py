"""What a receipt and a card say of language models is of the rows as their owner has them: whole texts, columns by their own names."""

import datasets
import numpy as np
import pytest

from hf_unlearn import UnlearningArguments, UnlearningError, unlearn
from hf_unlearn.audits.audit import audit_run
from hf_unlearn.hub import check_inclusion, evaluate_earlier, make_receipt, prove
from hf_unlearn.hub.records import SECRETS
from hf_unlearn.methods.npo import NpoConfig
from hf_unlearn.training.facts import describe_run
from tests.tiny import WORDS, tiny_llama_lm, tiny_tokenizer

SIZES = {"forget": 3, "retain": 5, "unseen": 4, "test": 4}


def sets(*columns):
    rng = np.random.default_rng(0)
    return {
        name: datasets.Dataset.from_list([{c: " ".join(rng.choice(WORDS, 30)) for c in columns} for _ in range(n)])
        for name, n in SIZES.items()
    }


def run(folder, data, method, **settings):
    args = UnlearningArguments(
        output_dir=folder / "out",
        max_length=16 if "stride" in settings else 32,
        max_steps=1,
        report_to="none",
        use_cpu=True,
        **settings,
    )
    return unlearn(tiny_llama_lm(), **data, method=method, args=args, processing_class=tiny_tokenizer())


def holds(result, folder, row):
    """Whether the owner of a row, and nobody else, can show that it was forgotten."""
    result.save(folder / "release")
    receipt = make_receipt(result, folder / "release")
    secrets = result.run.private / SECRETS
    with pytest.raises(UnlearningError, match="The record was not in the request"):
        prove(dict.fromkeys(row, "a stranger"), secrets)
    return receipt["forget"], check_inclusion(receipt, row, prove(row, secrets))


def test_pieces_of_texts_are_told_as_the_texts(tmp_path, capsys):
    data = sets("story")
    result = run(tmp_path, data, NpoConfig(until="end"), stride=4, text_column="story")
    assert "npo: 3 forget samples." in capsys.readouterr().out
    forget, holds_for_owner = holds(result, tmp_path, data["forget"][1])
    assert forget["columns"] == ["story"] and forget["count"] == 3 and holds_for_owner
    facts, samples = describe_run(result.run), {"forget": 3, "retain": 5, "unseen": 4}
    assert facts["request"]["samples"] == SIZES and facts["measured"] == samples
    assert 1 <= facts["read"]["forget"] <= 3 and facts["read"]["retain"] <= 5
    assert len(result.run.sources["forget"]) > 3
    content = audit_run(result.run, result.model).content
    assert content["request"]["samples"] == samples
    cannot = " ".join(content["verdict"]["cannot"])
    assert "With 3 forget samples (at least 30 are wanted) beside 4 unseen ones" in cannot
    assert "are pieces of 3 forget and 4 unseen texts" in cannot
    (row,) = evaluate_earlier(result, [{"name": "request-1", "forget": sets("story", "other")["test"]}])
    assert row["samples"] == 4 and row["before"]["loss"] > 0


def test_preferences_keep_their_names(tmp_path):
    data = sets("prompt", "chosen", "rejected")
    for name in ("retain", "unseen", "test"):
        data[name] = data[name].remove_columns("chosen").rename_column("rejected", "completion")
    result = run(tmp_path, data, "dpo")
    row = data["forget"][2]
    forget, holds_for_owner = holds(result, tmp_path, {"prompt": row["prompt"], "rejected": row["rejected"]})
    assert forget["columns"] == ["prompt", "rejected"] and forget["count"] == 3 and holds_for_owner
