"""An audit as a report of tests in JUnit's format: what was asked is a test, what fails is its failure.

Memory that could not be judged is skipped: that its tests found nothing says nothing.
"""

import xml.etree.ElementTree as ET
from typing import Any

from .content import plain
from .verdict import Verdict, decides

MEMORY = ("residual", "over")


def junit(content: dict[str, Any], verdict: Verdict) -> str:
    """The report as XML; the first test is the verdict itself."""
    name = plain(f"audit of {content['models']['unlearned']}")
    suite = ET.Element("testsuite", name=name, timestamp=content.get("date", ""))
    case = _case(suite, "verdict", "\n".join([verdict.plain, verdict.headline, verdict.tested, *verdict.cannot]))
    if "cannot-judge" in verdict.came_out:
        _add(case, "skipped", verdict.headline)
    elif verdict.came_out:
        _add(case, "failure", verdict.headline, verdict.outcome)
    for finding in verdict.findings:
        if finding.fails or decides(finding):
            case = _case(suite, finding.name, finding.question)
            if finding.fails:
                _add(case, "failure", finding.sentence, finding.kind)
            elif finding.kind in MEMORY and not verdict.judged:
                _add(case, "skipped", "Nothing was found, and this audit cannot judge what that says.")
    counts = {"tests": "testcase", "failures": "testcase/failure", "skipped": "testcase/skipped"}
    for attribute, path in counts.items():
        suite.set(attribute, str(len(suite.findall(path))))
    suite.set("errors", "0")
    if seconds := content.get("cost", {}).get("seconds", {}).get("total"):
        suite.set("time", f"{seconds:.3f}")
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return f"<?xml version='1.0' encoding='utf-8'?>\n{ET.tostring(root, encoding='unicode')}\n"


def _case(suite: ET.Element, name: str, about: str) -> ET.Element:
    case = ET.SubElement(suite, "testcase", classname="hf_unlearn.audit", name=plain(name))
    ET.SubElement(case, "system-out").text = "\n".join(map(plain, about.splitlines()))
    return case


def _add(case: ET.Element, tag: str, message: str, kind: str | None = None) -> None:
    case.insert(0, ET.Element(tag, {"message": plain(message)} | ({"type": plain(kind)} if kind else {})))
