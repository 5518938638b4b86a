"""Section on the configurations, the saved models, and the training environments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ndm.report.blocks import Folded, Section, Table, Text
from ndm.report.findings import Findings
from ndm.report.subjects import Subject

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    subjects = [f.subject for f in findings]
    part = Section("configuration", "Configuration and environment")
    names = list(dict.fromkeys(key for s in subjects for key in s.environment))
    if names:
        rows = [[name, *(_plain(s.environment.get(name, "–")) for s in subjects)] for name in names]
        heads = [None, *(s.index for s in subjects)]
        part.blocks.append(Table("Training environment", ["", *(s.name for s in subjects)], rows, "", heads, True))
    else:
        part.blocks.append(Text("The training environment is not known (the runs have no environment.json)."))
    for s in subjects:
        if s.text:
            part.blocks.append(Folded(f"config.yaml of {s.name}", s.text))
        part.blocks.append(Folded(f"The model of {s.name}, as saved", _model_text(s)))
    part.blocks.append(
        Text(Markup("To repeat a training, use its config.yaml: <code>ndm train config.yaml --out FOLDER</code>."))
    )
    return part


def _model_text(s: Subject) -> str:
    try:
        return json.dumps(s.model.config(), indent=2, ensure_ascii=False)
    except TypeError:  # a custom part without configuration
        return repr(s.model)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
