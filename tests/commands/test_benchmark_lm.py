"""The benchmark of methods for language models, on a tiny model and a tiny TOFU; what its figures are, and how they are read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from real_data import stories15m
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_unlearn import UnlearningError, metrics, models
from hf_unlearn.audits.relearning import in_adapter, taught
from hf_unlearn.commands import main, tofu_benchmark
from hf_unlearn.commands.tofu_benchmark import AFTER, AS_IS, Benchmark, Settings, reader
from hf_unlearn.commands.tofu_report import cells, figures, picture, reading, table
from hf_unlearn.models import adapters
from tests.audits.test_tofu import FILES
from tests.tiny import tiny_llama_lm, tiny_tokenizer

SMALL = {"retain": 8, "asked": 4, "epochs": 2, "learning_rate": 0.01, "max_new_tokens": 6}
LORA = {"r": 2, "target_modules": "all-linear"}


@pytest.fixture
def data(tmp_path: Path) -> str:
    folder = tmp_path / "tofu"
    folder.mkdir()
    learnt = {"forget01": FILES["forget01_perturbed"], "retain99": FILES["retain_perturbed"] * 4}
    for name, content in (FILES | learnt).items():
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, content)))
    return str(folder)


@pytest.fixture
def start(tmp_path: Path) -> str:
    folder = tmp_path / "start"
    tiny_llama_lm().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def options(start: str, data: str, output: Path, *more: str) -> list[str]:
    given = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["benchmark-lm", start, "--data", data, "--output", str(output), *given, *more]


class TestCommand:
    @pytest.mark.slow
    def test_goes_on_where_it_was(self, start, data, tmp_path, capsys):
        output = tmp_path / "out"
        command = options(start, data, output, "--methods", "npo", "retrain")
        assert main([*command, "--minutes", "1e-9"]) == 0
        out = capsys.readouterr().out
        assert out.count("seed 0, ") == 1 and "4 models are left to do" in out
        assert main(command) == 0
        out = capsys.readouterr().out
        assert [line.split(":")[0] for line in out.splitlines() if line.startswith("seed")] == [
            f"seed 0, {name}" for name in ("retrained", "retrained again", "npo", "retrain")
        ]
        rows = json.loads((output / "benchmark.json").read_text())["rows"]["0"]
        assert rows["npo"]["peak"] is None or rows["npo"]["peak"] >= 0
        for name, row in rows.items():
            assert list(row["asked"]) == [AS_IS, *AFTER], name
            sizes = [len(row["asked"][state]["forget"]["ratios"]) for state in (AS_IS, *AFTER)]
            assert sizes == [4, 3, 4, 4]  # one forget sample was shown, and is not asked about
            assert all(len(row["min_k"][side]) == 4 for side in ("forget", "unseen"))
        svg = (output / "benchmark.svg").read_text()
        assert svg.startswith("<svg") and "retrained again" in svg and "relearned forget" in svg
        before = (output / "benchmark.json").read_bytes()
        assert main(command) == 0  # nothing is left to do
        assert "seed 0" not in capsys.readouterr().out and (output / "benchmark.json").read_bytes() == before
        assert main([*command, "--epochs", "3"]) == 2
        assert "holds a benchmark of other settings" in capsys.readouterr().err

    def test_bad_input(self, start, data, tmp_path, capsys):
        output = tmp_path / "out"
        for more, message in (
            (("--retain", "9"), "--retain is 9, and beside the 4 forgotten questions"),
            (("--asked", "0"), "--asked is 0; expected 1 or more."),
            (("--methods", "nppo"), "did you mean 'npo'?"),
            (("--data", str(tmp_path / "no")), "which is no folder"),
        ):
            assert main(options(start, data, output, *more)) == 2
            assert message in capsys.readouterr().err, message
        output.mkdir()
        (output / "benchmark.json").write_text("[]")
        assert main(options(start, data, output)) == 2
        assert "is damaged, or of something else" in capsys.readouterr().err
        assert not (output / "models").exists()

    def test_other_answers_are_those_of_the_evaluation(self, start, data, tmp_path, monkeypatch):
        benchmark = Benchmark(tmp_path / "out", Settings(start, **SMALL), data)
        monkeypatch.setattr(Benchmark, "_examined", lambda *_: {})
        found = {name: benchmark.run(0, name) for name in ("original", "dpo", "altpo", "idk_dpo")}
        assert not any("error" in row for row in found.values())
        is_told = {name: tofu_benchmark.JUDGED_BY in row["notes"] for name, row in found.items() if name != "original"}
        assert is_told == {"dpo": True, "altpo": True, "idk_dpo": False}

    def test_a_method_that_cannot_run(self, start, data, tmp_path, monkeypatch):
        benchmark = Benchmark(tmp_path / "out", Settings(start, **SMALL), data)

        def refuse(*_: Any, **__: Any) -> None:
            raise UnlearningError("It cannot.")

        monkeypatch.setattr(tofu_benchmark, "unlearn", refuse)
        monkeypatch.setattr(Benchmark, "_examined", lambda *_: {})
        assert "error" not in benchmark.run(0, "original") and benchmark.run(0, "npo") == {"error": "It cannot."}
        assert benchmark.work(["npo", "rmu"], 1) == 0 and benchmark.rows["0"]["rmu"] == {"error": "It cannot."}


def asked(ratios: list[float], probability: float, utility: float = 0.5) -> dict[str, Any]:
    shared = {"probability": probability, "rouge_l": 0.5, "truth": 0.5}
    shared |= {"extraction_strength": 0.1, "exact_memorisation": 0.2, "ratios": ratios}
    return {state: {"forget": shared, "retain": shared, "utility": utility} for state in (AS_IS, *AFTER)}


def row(ratios: list[float], probability: float, min_k: list[float], utility: float = 0.5) -> dict[str, Any]:
    return {
        "seconds": 2.0,
        "peak": 3_000_000,
        "asked": asked(ratios, probability, utility),
        "min_k": {"forget": min_k, "unseen": [-2.0, -3.0]},
    }


KNOWN, UNKNOWN = np.linspace(0.1, 0.3, 20).tolist(), np.linspace(0.8, 1.2, 20).tolist()
ROWS = {
    "original": row(KNOWN, 0.9, [-1.0, -1.0]),
    "retrained": row(UNKNOWN, 0.1, [-2.5, -2.5]),
    "retrained again": row([1.01 * r for r in UNKNOWN], 0.12, [-2.5, -2.5]),
    "npo": row(KNOWN, 0.02, [-9.0, -9.0]),
    "rewind": row(UNKNOWN, 0.1, [-2.5, -2.5], utility=0.3),
    "simnpo": row([10.0 * r for r in UNKNOWN], 0.0, [-9.0, -9.0]),
    "rmu": row(KNOWN, 0.8, [-1.0, -1.0]),
    "hamu": {"error": "It cannot."},
}


class TestFigures:
    def test_against_the_retrained_model_in_the_same_state(self):
        found = figures(ROWS)
        for state in (AS_IS, *AFTER):
            assert found["rewind"]["states"][state]["forget_quality"] == 1
            assert found["npo"]["states"][state]["forget_quality"] == metrics.forget_quality(KNOWN, UNKNOWN) < 1e-6
            assert found["npo"]["states"][state]["ks_distance"] == 1
        assert "forget_quality" not in found["retrained"]["states"][AS_IS]
        assert found["npo"]["states"][AS_IS]["ratio"] == pytest.approx(np.exp(np.log(KNOWN).mean()))
        assert found["original"]["privleak"] == -100 and found["npo"]["privleak"] == 100 == -found["rmu"]["privleak"]
        assert found["rewind"]["privleak"] == 0 and found["hamu"] == {"error": "It cannot."}
        assert "ratios" not in json.dumps(found) and "min_k" not in json.dumps(found)

    def test_what_only_hides_is_called_that(self):
        found = figures(ROWS)
        assert {name: of["reading"] for name, of in found.items() if "reading" in of} == {
            "npo": "hidden",
            "rewind": "as retrained, harm",
            "simnpo": "unlike retrained",
            "rmu": "still known",
        }
        alike = found["retrained again"]["states"][AS_IS]  # as where the original does not know them better
        assert reading(alike, alike, alike) == "as retrained"

    def test_before_anything_was_retrained(self):
        found = figures({"original": ROWS["original"]})
        assert "privleak" not in found["original"] and "reading" not in found["original"]
        assert "original" in table({"0": found}) and picture({"0": found}, "x").startswith("<svg")

    def test_table_and_picture(self):
        found = figures(ROWS)
        text = table({"0": found, "1": found})
        assert max(map(len, text.splitlines()[:20])) < 100 and "hamu: not run: It cannot." in text
        first, second = cells({"0": found, "1": found})
        assert [line[0] for line in first[1:]] == [*list(ROWS)[:-1]] == [line[0] for line in second[1:]]
        assert dict(zip(first[0], first[4], strict=True))["reading"] == "hidden" and second[0][-1] == "seconds"
        svg = picture({"0": found}, "Forgotten over kept")
        for name in ("original", "retrained", "npo", "rewind"):
            assert f'id="benchmark-point-{name}"' in svg, name
        assert 'id="benchmark-point-npo-4-bits"' in svg and 'id="benchmark-point-retrained-4-bits"' not in svg
        assert svg == picture({"0": found}, "Forgotten over kept")


class TestRelearning:
    def batch(self, model: Any) -> Any:
        rows = [{"question": f"the {word}", "answer": "red blue"} for word in ("cat", "dog")]
        return reader(model, tiny_tokenizer(), rows)([0, 1])

    @pytest.mark.parametrize("adapted", [False, True])
    def test_leaves_the_model_as_it_was(self, adapted):
        model = tiny_llama_lm()
        if adapted:
            model = get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False), adapter_name=adapters.NAME)
        model.train()
        batch, digest, names = self.batch(model), models.weights_digest(model), [n for n, _ in model.named_modules()]
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        seen = []
        with in_adapter(model, LORA, seed=0) as student:
            assert not student.training
            for step in taught(student, [[batch]] * 8, 3e-3):
                with torch.no_grad():
                    seen.append(step(**batch.inputs, labels=batch.labels).loss.item())
        assert len(seen) == 9 and seen[-1] < seen[0] - 0.02
        assert models.weights_digest(model) == digest and [n for n, _ in model.named_modules()] == names
        assert {name: p.requires_grad for name, p in model.named_parameters()} == trained and model.training
        if adapted:
            assert model.active_adapters == [adapters.NAME] and list(model.peft_config) == [adapters.NAME]
            with torch.no_grad():
                on = model.eval()(**batch.inputs).logits
                with adapters.Adapter(model).disabled():
                    assert not torch.equal(on, model(**batch.inputs).logits)
        else:
            assert not hasattr(model, "peft_config")

    def test_an_error_inside_takes_it_out_too(self):
        model = tiny_llama_lm()
        with pytest.raises(ZeroDivisionError), in_adapter(model, LORA, seed=0):
            raise ZeroDivisionError
        assert not any("lora" in name for name, _ in model.named_modules())


@pytest.mark.slow
def test_on_tofu(tmp_path):
    """The real questions, a real tokenizer, and a model of two narrow layers."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(stories15m())
    except RuntimeError as error:
        pytest.skip(f"stories15M is not here and cannot be fetched: {error}")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32_000, max_position_embeddings=256, **size)).save_pretrained(
        tmp_path / "m"
    )
    tokenizer.save_pretrained(tmp_path / "m")
    try:
        benchmark = Benchmark(
            tmp_path / "out",
            Settings(str(tmp_path / "m"), retain=40, asked=4, epochs=2, learning_rate=0.02, max_new_tokens=4),
        )
    except UnlearningError as error:
        pytest.skip(f"TOFU is not here: {error}")
    assert benchmark.work(["npo"], 1) == 0
    found = figures(benchmark.rows["0"])
    assert found["npo"]["reading"] in table({"0": found})
    again = found["retrained again"]["states"]
    # Two models that never saw these authors are alike, whatever was done to both.
    assert all(again[state]["forget_quality"] > 0.01 for state in (AS_IS, *AFTER))
