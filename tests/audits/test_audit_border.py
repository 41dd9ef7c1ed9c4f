"""What an audit is given and cannot use ends in one sentence, before a model is loaded or a file is written."""

import pytest

from hf_unlearn import UnlearningError, audit, models, unlearn
from hf_unlearn.audits.report import AuditReport
from hf_unlearn.commands.sets import read_dataset
from tests.audit_contents import audit_content
from tests.samples import arguments, request
from tests.tiny import tiny_vit


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": "x"}, "seed is 'x'; expected a whole number of 0 or more"),
        ({"seed": -1}, "seed is -1; expected"),
        ({"seed": True}, "seed is True; expected"),
        ({"batch_size": "x"}, "batch_size is 'x'; expected a whole number of 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; expected"),
        ({"columns": {}}, "columns is a dict; expected a Columns"),
        ({"canaries": [[0], [1, 2]]}, "canaries are 2 values of type object; expected places"),
        ({"processing_class": 5, "forget": [{"image": 3, "label": 0}]}, r"\.$"),
    ],
)
def test_one_sentence(given, message):
    with pytest.raises(UnlearningError, match=message) as caught:
        audit(tiny_vit(), tiny_vit(seed=1), **request() | given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", ["to_json", "to_html"])
def test_reports_that_cannot_be_written(tmp_path, write):
    for path in (tmp_path, tmp_path / "nowhere" / "report", 5):
        with pytest.raises(UnlearningError, match="path is .*; expected a (file|path)"):
            getattr(AuditReport(audit_content(level=0, classes=2, layers=2)), write)(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("token", ["hf_SECRET\tx", "hf_SECRET\x7fx", "hf_SECRETé", "hf_SECRET x"])
def test_a_token_that_cannot_be_sent(tmp_path, hub, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    for call in (
        lambda: unlearn("me/vit", **request(), args=arguments(tmp_path / "out"), method="finetune"),
        lambda: audit("me/vit", "me/vit", **request()),
        lambda: models.load_model("me/vit"),
        lambda: read_dataset("me/data"),
    ):
        with pytest.raises(UnlearningError, match="The token of the login .or HF_TOKEN. is empty, or has") as caught:
            call()
        assert "SECRET" not in str(caught.value)
