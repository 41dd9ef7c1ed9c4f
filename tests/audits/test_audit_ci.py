"""An audit in continuous integration: the verdict as an object, exit codes and JUnit's format."""

import copy
import importlib
import types
import xml.etree.ElementTree as ET

import pytest

from hf_unlearn import AuditReport
from hf_unlearn.audits.verdict import FAIL_ON, Finding, Verdict, decide
from hf_unlearn.commands import main
from hf_unlearn.errors import Failure
from tests.audit_contents import HOSTILE, audit_content, least, renamed

FAULT = {
    kind: Finding(kind, "Is it so?", "It is.", p=None if kind == "head" else 1e-9, fails=True, kind=kind)
    for kind in ("residual", "over", "harm", "head", "info")
}


def report_of(verdict: Verdict) -> AuditReport:
    return AuditReport(audit_content(level=0) | {"verdict": verdict.as_dict()})


CASES = {
    "clear": (decide([Finding("a", "?", "No.", p=0.9, kind="residual")], power=0.55), ()),
    "information": (decide([FAULT["info"]]), ()),
    "memory": (decide([FAULT["residual"], FAULT["harm"]]), ("residual", "harm")),
    "the other way": (decide([FAULT["over"]], judged=False), ("over",)),
    "the head": (decide([FAULT["head"]]), ("residual",)),
    "nothing was done": (decide([], changed=False), ("residual",)),
    "open": (decide([FAULT["harm"]], ["Too few."], judged=False), ("harm", "cannot-judge")),
}
each = pytest.mark.parametrize("case", CASES)


@each
def test_what_came_out(case):
    verdict, expected = copy.deepcopy(CASES[case])
    assert verdict.came_out == report_of(verdict).verdict.came_out == expected
    assert set(expected) <= set(FAIL_ON) and report_of(verdict).verdict == verdict


def test_older_reports():
    verdict = AuditReport(least()).verdict
    assert verdict.outcome == "cannot judge" and verdict.came_out == ("cannot-judge",)
    assert verdict.plain == verdict.headline and verdict.cannot == ["Anything at all."]


@each
def test_junit(case, tmp_path):
    verdict, expected = CASES[case]
    suite = ET.parse(report_of(verdict).to_junit(tmp_path / "audit.xml")).getroot().find("testsuite")
    states = {one.get("name"): [part.tag for part in one][:-1] for one in suite.findall("testcase")}
    assert states["verdict"] == (["skipped"] if "cannot-judge" in expected else ["failure"] if expected else [])
    asked = [finding.name for finding in verdict.findings if finding.kind != "info" or finding.fails]
    assert list(states) == ["verdict", *asked]
    assert all(states[f.name] == ["failure"] for f in verdict.findings if f.fails)
    counted = [len(suite.findall(f"testcase/{tag}")) for tag in ("failure", "skipped")]
    assert [int(suite.get(name)) for name in ("failures", "skipped", "tests")] == [*counted, len(states)]


def test_memory_that_cannot_be_judged_does_not_pass(tmp_path):
    findings = [
        Finding("membership", "?", "No.", p=0.9, kind="residual"),
        Finding("harm", "?", "No.", p=0.9, kind="harm"),
    ]
    report = report_of(decide(findings, ["Too few."], judged=False))
    suite = ET.parse(report.to_junit(tmp_path / "audit.xml")).getroot()
    skipped = {case.get("name") for case in suite.iter("testcase") if case.find("skipped") is not None}
    assert skipped == {"verdict", "membership"}


def test_names_that_would_break_a_file(tmp_path):
    ET.parse(AuditReport(renamed(audit_content(level=0), HOSTILE)).to_junit(tmp_path / "audit.xml"))


@pytest.mark.parametrize(
    ("words", "case", "code"),
    [
        (None, "memory", 0),
        ("over,cannot-judge", "memory", 0),
        ("over, harm", "memory", 3),
        ("residual,over,harm,cannot-judge", "clear", 0),
        ("cannot-judge", "open", 3),
        ("residual", "nothing was done", 3),
    ],
)
def test_exit_codes(words, case, code, tmp_path, monkeypatch, capsys):
    model = types.SimpleNamespace(config=types.SimpleNamespace())
    for name, value in (
        ("models:load_model", model),
        ("models:load_processor", None),
        ("commands.sets:read_set", None),
        ("audits.audit:audit", report_of(CASES[case][0])),
    ):
        module, _, attribute = name.partition(":")
        module = importlib.import_module(f"hf_unlearn.{module}")
        monkeypatch.setattr(module, attribute, lambda *_, value=value, **__: value)
    argv = ["audit", "a", "b", "--forget", "c", "--junit", str(tmp_path / "audit.xml")]
    assert main([*argv, *(["--fail-on", words] if words else [])]) == code
    assert (tmp_path / "audit.xml").exists() and ("--fail-on: " in capsys.readouterr().err) == (code == 3)


def test_errors_are_no_verdicts(monkeypatch, capsys):
    def fail(*_, **__):
        raise Failure("The audit failed with a RuntimeError: something else.")

    assert main(["audit", "a", "b", "--forget", "c", "--fail-on", "memory"]) == 2
    assert capsys.readouterr().err == (
        "error: --fail-on names 'memory'; expected some of residual, over, harm, cannot-judge.\n"
    )
    monkeypatch.setattr("hf_unlearn.models.load_model", fail)
    assert main(["audit", "a", "b", "--forget", "c", "--fail-on", "residual"]) == 1
