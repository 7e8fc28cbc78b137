from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from cmrn.bench import store
from cmrn.bench.report import Progress
from cmrn.bench.store import CASES, StoreOptions, run
from cmrn.bench.store_case import Findings
from cmrn.errors import UsageError
from cmrn_cli import main

Case = Callable[[StoreOptions, Progress], Findings]


def keeps(options: StoreOptions, progress: Progress) -> Findings:
    findings = Findings(notes=["A note."])
    findings.count("kills", options.rounds or 7)
    findings.count("lost", 0, "records", limit=0)
    progress("trying")
    return findings


def breaks(options: StoreOptions, progress: Progress) -> Findings:
    findings = Findings()
    assert findings.fail("kill 3", ["record 5 is missing \x1b[2J"])
    assert not findings.fail("kill 4", [])
    findings.count("lost", 1, "records", limit=0)
    return findings


@pytest.fixture
def two_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CASES", {"keeps": f"{__name__}:keeps", "breaks": f"{__name__}:breaks"})
    found: dict[str, Case] = {"keeps": keeps, "breaks": breaks}
    monkeypatch.setattr(store, "_function", lambda name: found[name])


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_function(name: str) -> None:
    assert callable(store._function(name))


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(UsageError, match="no case 'kil'"):
        run(StoreOptions(cases=("kil",)), lambda text: None)


def test_figures_and_broken_promises_of_every_case(two_cases: None) -> None:
    told: list[str] = []
    report = run(StoreOptions(rounds=3), told.append)
    assert told == ["keeps: trying"]
    assert [(row.name, row.value, row.limit) for row in report.rows] == [
        ("keeps: kills", 3.0, None),
        ("keeps: lost", 0.0, 0.0),
        ("breaks: lost", 1.0, 0.0),
    ]
    assert report.settings["failures"] == 2
    assert report.notes == (
        "keeps: A note.",
        "breaks: kill 3: record 5 is missing \x1b[2J",
        "breaks: lost: 1 records, where 0 is the most",
    )


def test_a_broken_promise_ends_the_command_with_8(two_cases: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "store", "--case", "keeps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["value"] == 7
    assert main.run(["bench", "store"]) == 8
    said = capsys.readouterr().err
    assert "2 promises broken" in said
    assert "\x1b" not in said
