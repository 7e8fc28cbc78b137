from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmrn_cli.main import run

PENGUINS = (
    "If all birds can fly, and penguins are birds, but penguins cannot fly, "
    "what can we conclude about the initial premise?"
)
KEYS = {"schema_version", "kind", "answer", "value", "status", "conclusions", "steps", "assumptions", "contradictions",
        "revisions", "not_understood"}  # fmt: skip


def test_json_is_the_documents_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reason", PENGUINS, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) >= KEYS
    assert (document["kind"], document["answer"]) == ("meta", "false")
    assert document["contradictions"] == [{"statements": ["P1", "P2", "P3"]}]
    assert document["revisions"][0]["text"] == "all birds except penguins can fly"
    assert {"id", "operation", "premises", "conclusion", "degree"} <= set(document["steps"][0])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Bob is red. Is Bob red?", 0),
        ("Bob is not red. Is Bob red?", 20),
        ("Bob is kind. Is Bob red?", 21),
        ("Bob is red. Bob is not red. Is Bob red?", 22),
        ("Bob is red. Who is red?", 23),
    ],
)
def test_exit_status_tells_the_verdict(text: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reason", text, "--exit-status"]) == code
    assert run(["reason", text]) == 0
    capsys.readouterr()


def test_strict_refuses_what_was_not_understood(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Tom is kind. Most cats are red. Is Tom kind?"
    assert run(["reason", text]) == 0
    shown = capsys.readouterr()
    assert "partial" in shown.out
    assert "chars 13-30" in shown.err
    assert "nearest accepted form" in shown.err
    assert run(["reason", text, "--strict"]) == 3
    assert run(["reason", "Tom is kind. Is Tom kind?", "--strict"]) == 0


LOOSE = (
    "All people who regularly drink coffee in the morning sleep badly at night. Ann drinks coffee in the morning and "
    "reads much. True or false: Ann sleeps badly at night."
)


def test_strict_refuses_a_loose_reading(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reason", LOOSE]) == 0
    shown = capsys.readouterr().out
    assert "true (partial)" in shown
    assert "assumed: read loosely" in shown
    assert run(["reason", LOOSE, "--strict"]) == 3
    capsys.readouterr()


def test_strict_refuses_rules_between_phrases_though_every_sentence_was_understood(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "All monitors in the library are cheap. Zib is in the library. True or false: Zib is cheap."
    run(["reason", text, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["answer"], document["status"], document["not_understood"]) == ("true", "partial", [])
    assert run(["reason", text, "--strict"]) == 3
    assert "loose reading" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([""], 3),
        (["Is Bob red?"], 3),
        (["Todos los gatos son animales."], 3),
        (["Bob is red.", "--world", "flat"], 2),
        (["Bob is red.", "--facts", "missing.txt"], 2),
        (["If something is not red then it is kind. If something is not kind then it is red. Is Bob red?",
          "--world", "closed"], 3),
    ],
)  # fmt: skip
def test_bad_input_has_its_exit_code(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reason", *words]) == code
    assert "error:" in capsys.readouterr().err


def test_proof_world_facts_and_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "facts.txt").write_text("Tweety is a bird.\n")
    (tmp_path / "rules.txt").write_text("All birds can fly.\n")
    given = ["--facts", str(tmp_path / "facts.txt"), "--rules", str(tmp_path / "rules.txt")]
    assert run(["reason", "Can Tweety fly?", *given, "--proof"]) == 0
    shown = capsys.readouterr().out
    assert "modus ponens" in shown
    assert "Tweety is a bird" in shown
    assert run(["reason", "Tweety is a bird. Can Tweety fly?", "--world", "closed", "-q"]) == 0
    assert capsys.readouterr().out == "false\n"


def test_a_page_holds_no_foreign_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "answer.html"
    assert run(["reason", "Bob is red. <script>alert(1)</script>. Is Bob red?", "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text
    capsys.readouterr()


def test_output_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(["reason", "Bob is red. \x1b[31mMost cats\x1b[0m are red. Is Bob red?", "--proof"])
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err


def test_bench_reports_coverage_and_precision_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "reason", "--own", "2", "--deepest", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = [row["name"] for row in rows]
    assert "own, chain: right" in names
    assert "own, chain: answered" in names
    assert all(row["value"] == 100 for row in rows if row["name"].startswith("own") and row["unit"] == "%")


def test_bench_compares_random_theories_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "reason", "--theories", "6", "--first", "40", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["value"], row["detail"]["theories"], row["detail"]["first"]) == (100.0, 6, 40)


def test_bench_refuses_a_case_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["bench", "reason", "--case", "folly"]) == 2
    assert "questions, speed, rules, depth, clutrr, folio" in capsys.readouterr().err
    assert run(["bench", "reason", "--case", "clutrr", "--data-root", str(tmp_path)]) == 2
    assert run(["bench", "reason", "--case", "folio", "--data-root", str(tmp_path)]) == 2


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert run(["reason", "Bob is red. Is Bob red?", "--html", str(folder)]) == 4
    assert str(folder) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]
