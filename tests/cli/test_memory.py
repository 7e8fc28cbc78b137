from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from cmrn.memory.store import MemoryStore
from cmrn_cli import memory, memory_upkeep
from cmrn_cli.app import build_app
from cmrn_cli.main import run
from tests.cli.conftest import Run

Call = Callable[..., Any]
EXAMPLES = {**memory.EXAMPLES, **memory_upkeep.EXAMPLES}
POPULATE_KEYS = {"schema_version", "read", "added", "updated", "unchanged", "rejected", "rejects_file", "seconds",
                 "records_per_s"}  # fmt: skip
LINES = (
    b'{"id": "cat", "text": "The cat sat on the mat.", "title": "Cats", "year": 1901}\n'
    b'{"id": "sun", "text": "Stars burn hydrogen.", "source": "sky"}\n'
    b'{"text": "Bread is baked from flour.", "namespace": "kitchen"}\n'
)
HOSTILE = "\x1b]52;c;AAAA\x07 [red]x[/nope] \x9b2J \u202e\x00".replace("\x00", "") + "end"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in a folder of its own, where facts.jsonl is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.jsonl").write_bytes(LINES)
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a memory command with --json; its document and exit code, which must be 0 unless said."""

    def called(*words: str, code: int = 0) -> Any:
        assert run(["memory", *words, "--json"]) == code
        shown = capsys.readouterr()
        if code:
            error = json.loads(shown.err.splitlines()[-1])["error"]
            assert error["code"] == code
            return error
        return json.loads(shown.out)

    return called


@pytest.fixture(scope="session")
def three_facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the three facts, to copy."""
    folder = tmp_path_factory.mktemp("stores")
    (folder / "facts.jsonl").write_bytes(LINES)
    assert run(["memory", "populate", str(folder / "facts.jsonl"), "--store", str(folder / "memory"), "--quiet"]) == 0
    return folder / "memory"


@pytest.fixture
def filled(call: Call, folder: Path, three_facts: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """As `call`, where there is a store of the three facts."""
    shutil.copytree(three_facts, folder / "memory")
    capsys.readouterr()
    return call


class TestHelp:
    @pytest.mark.parametrize("name", [*EXAMPLES, "populate-memory"])
    def test_three_examples(self, name: str) -> None:
        words = ["populate-memory"] if name == "populate-memory" else ["memory", *name.split()]
        result = CliRunner().invoke(build_app(), [*words, "--help"])
        assert result.exit_code == 0
        shown = result.stdout.split("Examples:")[1].strip().splitlines()
        assert len([line for line in shown if "cmrn memory" in line]) >= 3

    @pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
    def test_examples_parse(self, line: str) -> None:
        for command in line.replace("&&", "|").split("|"):
            words = shlex.split(command)
            if words[0] == "cmrn":
                tree = typer.main.get_command(build_app())
                with tree.make_context("cmrn", words[1:]) as context:
                    name, group, rest = tree.resolve_command(context, [*context._protected_args, *context.args])
                    assert group is not None
                    with group.make_context(name, rest, parent=context) as inner:
                        sub = group.resolve_command(inner, [*inner._protected_args, *inner.args])
                        assert sub[1] is not None
                        sub[1].make_context(sub[0], sub[2], parent=inner).close()

    def test_help_loads_nothing_heavy(self) -> None:
        code = (
            "import sys; from cmrn_cli.main import run; run(['memory', 'populate', '--help']);"
            "print('LOADED', [n for n in ('torch', 'numpy', 'faiss', 'sentence_transformers')"
            " if n in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("LOADED []")


class TestPopulate:
    def test_the_document(self, call: Call) -> None:
        document = call("populate", "facts.jsonl")
        assert set(document) >= POPULATE_KEYS
        assert (document["read"], document["added"], document["rejects_file"]) == (3, 3, None)
        again = call("populate", "facts.jsonl")
        assert (again["added"], again["updated"], again["unchanged"]) == (0, 0, 3)

    def test_the_other_name_gives_the_same_document(self, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
        document = call("populate", "facts.jsonl")
        assert run(["populate-memory", "facts.jsonl", "--store", "other", "--json"]) == 0
        other = json.loads(capsys.readouterr().out)
        timed = {"seconds", "records_per_s"}
        assert {k: v for k, v in other.items() if k not in timed} == {
            k: v for k, v in document.items() if k not in timed
        }

    def test_rejected_lines_are_exit_3_and_the_others_stored(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "bad.jsonl").write_bytes(b"\xff\n" + LINES + b"[]\n")
        assert run(["memory", "populate", "bad.jsonl", "--json"]) == 3
        shown = capsys.readouterr()
        document = json.loads(shown.out)
        assert (document["added"], document["rejected"], document["rejects_file"]) == (3, 2, "rejects.jsonl")
        assert json.loads(shown.err)["error"]["code"] == 3
        assert [json.loads(line)["line"] for line in (folder / "rejects.jsonl").read_text().splitlines()] == [1, 5]
        assert run(["memory", "populate", "bad.jsonl", "--on-error", "stop", "--store", "other"]) == 3
        assert "bad.jsonl:1" in capsys.readouterr().err

    def test_stdin_and_fields(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        line = b'{"fact": "Water boils at 100 degrees.", "no": 7, "a": 1, "b": 2}\n'
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line)))
        call("populate", "-", "--text-field", "fact", "--id-field", "no", "--meta", "a", "--source", "s",
             "--namespace", "n")  # fmt: skip
        (record,) = call("get", "7")["records"]
        assert (record["meta"], record["source"], record["namespace"]) == ({"a": 1}, "s", "n")

    @pytest.mark.parametrize(
        ("words", "code"),
        [
            (["missing.jsonl"], 2),
            (["."], 2),
            (["facts.jsonl", "--shard", "5/4"], 2),
            (["facts.jsonl", "--on-error", "ask"], 2),
            (["facts.jsonl", "--embedder", "no/such-model"], 4),
            (["empty.jsonl"], 3),
        ],
    )
    def test_failures_have_their_codes(self, words: list[str], code: int, call: Call, folder: Path) -> None:
        (folder / "empty.jsonl").touch()
        assert run(["memory", "populate", *words]) == code

    def test_a_locked_store_is_exit_5_at_once_and_names_the_holder(self, filled: Call) -> None:
        with MemoryStore.open(Path("memory"), write=True):
            started = time.monotonic()
            error = filled("populate", "facts.jsonl", code=5)
            assert time.monotonic() - started < 1
            assert str(os.getpid()) in error["message"]
            filled("delete", "cat", code=5)
            filled("compact", code=5)
            assert filled("get", "cat")["records"]


class TestSearch:
    def test_the_nearest_in_meaning_come_first(self, filled: Call) -> None:
        hits = filled("search", "what makes a star shine", "-k", "2")["hits"]
        assert (hits[0]["id"], len(hits)) == ("sun", 2)
        assert set(hits[0]) >= {"id", "record", "score", "text", "meta", "namespace", "source"}
        assert 1 >= hits[0]["score"] > hits[1]["score"]
        assert hits[0]["source"] == "sky"

    def test_only_where_and_in_the_namespace(self, filled: Call) -> None:
        assert [hit["id"] for hit in filled("search", "star", "--where", "year=1901")["hits"]] == ["cat"]
        assert [hit["id"] for hit in filled("search", "star", "--where", "year=1902")["hits"]] == []
        assert [hit["record"] for hit in filled("search", "star", "--namespace", "kitchen")["hits"]] == [3]

    def test_one_source_has_at_most_its_share(self, filled: Call) -> None:
        assert {hit["source"] for hit in filled("search", "star", "--per-source", "1")["hits"]} == {
            "facts.jsonl",
            "sky",
        }
        assert len(filled("search", "star", "--per-source", "1")["hits"]) == 2
        assert len(filled("search", "star", "--per-source", "2")["hits"]) == 3

    def test_edits_and_deletions_are_seen_at_once(self, filled: Call) -> None:
        filled("edit", "cat", "--text", "A star shines by nuclear fusion.")
        assert filled("search", "what makes a star shine by fusion")["hits"][0]["id"] == "cat"
        filled("delete", "cat")
        assert [hit["id"] for hit in filled("search", "star")["hits"]] == ["sun", None]

    def test_a_title_is_read_with_the_text(self, filled: Call) -> None:
        before = {hit["id"]: hit["score"] for hit in filled("search", "Cats")["hits"]}
        filled("edit", "cat", "--meta", "title=Nuclear physics")
        after = {hit["id"]: hit["score"] for hit in filled("search", "Cats")["hits"]}
        assert after["cat"] < before["cat"] - 0.05
        assert after["sun"] == pytest.approx(before["sun"], abs=1e-6)

    def test_nothing_stored_is_nothing_found(self, filled: Call, capsys: pytest.CaptureFixture[str]) -> None:
        filled("delete", "record:1", "record:2", "record:3")
        assert filled("search", "anything")["hits"] == []
        assert run(["memory", "search", "anything"]) == 0
        assert "nothing found" in capsys.readouterr().err

    @pytest.mark.parametrize("words", [["-k", "0"], ["-k", "-1"], ["--where", "year"], ["--per-source", "0"]])
    def test_usage(self, words: list[str], filled: Call) -> None:
        filled("search", "x", *words, code=2)

    def test_another_encoder_is_refused(self, filled: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        from cmrn.memory import embedding

        monkeypatch.setattr(embedding, "_hash_of", lambda folder: "0" * 32)
        error = filled("search", "star", code=4)
        assert "reembed" in error["hint"]
        filled("populate", "facts.jsonl", code=4)
        filled("reembed")
        assert filled("search", "star")["hits"]

    def test_a_person_sees_scores_names_and_texts(self, filled: Call, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["memory", "search", "star"]) == 0
        shown = capsys.readouterr().out
        assert "record:2 · sun · sky · default" in shown
        assert "Stars burn hydrogen." in shown
        assert "█" in shown


class TestRecords:
    def test_get_by_id_and_by_number(self, filled: Call) -> None:
        (record,) = filled("get", "cat")["records"]
        assert record == {
            "id": "cat", "record": 1, "text": "The cat sat on the mat.", "meta": {"title": "Cats", "year": 1901},
            "namespace": "default", "source": "facts.jsonl", "origin": "user", "trust": 1.0,
        }  # fmt: skip
        assert filled("get", "record:3")["records"] == filled("get", "3")["records"]
        filled("get", "dog", code=2)
        filled("get", "cat", "--namespace", "kitchen", code=2)

    def test_edit(self, filled: Call) -> None:
        filled("edit", "cat", "--meta", "year=1902", "--meta", "title=null", "--meta", "note=so it is")
        assert filled("get", "cat")["records"][0]["meta"] == {"year": 1902, "note": "so it is"}
        with MemoryStore.open(Path("memory")) as store:
            before = store.vectors([1])
        filled("edit", "cat", "--text", "The dog lay on the mat.")
        with MemoryStore.open(Path("memory")) as store:
            assert (store.vectors([1]) != before).any()
        assert filled("get", "cat")["records"][0]["text"] == "The dog lay on the mat."
        filled("edit", "cat", code=2)
        filled("edit", "cat", "--text", " ", code=2)
        filled("edit", "cat", "--meta", "novalue", code=2)
        filled("edit", "dog", "--text", "x", code=2)

    def test_one_id_of_several_records_must_be_told_apart(self, filled: Call, folder: Path) -> None:
        filled("populate", "facts.jsonl", "--source", "again")
        for words in (["edit", "cat", "--meta", "a=1"], ["delete", "cat"]):
            assert "record:1" in filled(*words, code=2)["hint"]
        assert len(filled("get", "cat")["records"]) == 2
        assert filled("delete", "record:1")["deleted"] == 1
        assert filled("delete", "cat")["deleted"] == 1

    def test_a_source_is_deleted_only_when_asked_twice(
        self, filled: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        filled("delete", "--source", "sky", code=2)

        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr("sys.stdin", Terminal("no\n"))
        assert run(["memory", "delete", "--source", "sky"]) == 2
        assert "[y/N]" in capsys.readouterr().err
        assert filled("get", "sun")["records"]
        monkeypatch.setattr("sys.stdin", Terminal("y\n"))
        assert run(["memory", "delete", "--source", "sky"]) == 0
        capsys.readouterr()
        filled("get", "sun", code=2)
        assert filled("delete", "--source", "facts.jsonl", "--yes")["deleted"] == 2
        filled("delete", code=2)
        filled("delete", "cat", "--source", "sky", code=2)

    def test_after_compact_no_byte_of_it_is_left(self, filled: Call, folder: Path) -> None:
        (folder / "secret.jsonl").write_text('{"text": "The password is xyzzyplugh."}\n')
        filled("populate", "secret.jsonl")
        (folder / "secret.jsonl").unlink()
        filled("delete", "--source", "secret.jsonl", "--yes")
        assert filled("compact")["freed_bytes"] >= 0
        found = [path for path in (folder / "memory").rglob("*") if path.is_file() and b"xyzzy" in path.read_bytes()]
        assert found == []


class TestUpkeep:
    def test_verify_names_damage_and_exits_4(
        self, filled: Call, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert filled("verify") == {"schema_version": 1, "ok": True, "problems": []}
        path = folder / "memory" / "memory.db"
        data = path.read_bytes()
        assert data.count(b"Stars burn hydrogen.") == 1
        path.write_bytes(data.replace(b"Stars burn hydrogen.", b"Stars burn hydrogem."))
        assert run(["memory", "verify", "--json"]) == 4
        shown = capsys.readouterr()
        document = json.loads(shown.out)
        assert document["ok"] is False
        assert {"what", "where"} == set(document["problems"][0])
        assert any("record 2" in problem["where"] for problem in document["problems"])
        filled("get", "sun", code=2)

    def test_stats_and_rebuild(self, filled: Call, folder: Path) -> None:
        index = {"kind": "flat", "records": 3}
        document = filled("stats")
        assert {"records", "namespaces", "dim", "embedder", "index", "bytes"} <= set(document)
        assert document["namespaces"] == {"default": 2, "kitchen": 1}
        assert (document["records"], document["dim"], document["index"]) == (3, 384, index)
        before = filled("search", "star")
        for path in (folder / "memory" / "index").iterdir():
            path.write_bytes(b"broken")
        assert filled("search", "star") == before
        assert filled("rebuild")["index"] == index
        assert filled("search", "star") == before

    def test_an_export_makes_an_equal_store(
        self, filled: Call, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert filled("export", "one.jsonl")["records"] == 3
        filled("populate", "one.jsonl", "--store", "other")
        filled("export", "two.jsonl", "--store", "other")
        assert (folder / "one.jsonl").read_bytes() == (folder / "two.jsonl").read_bytes()
        assert filled("export", "three.jsonl", "--namespace", "kitchen")["records"] == 1
        capsys.readouterr()
        assert run(["memory", "export", "-"]) == 0
        assert capsys.readouterr().out == (folder / "one.jsonl").read_text("ascii")
        for name in (".", "memory/memory.db", "/dev/null"):
            filled("export", name, code=2)

    def test_a_list_of_refused_lines_replaces_no_input_and_no_store(self, filled: Call, folder: Path) -> None:
        (folder / "bad.jsonl").write_bytes(LINES + b"nonsense\n")
        for name in ("bad.jsonl", "memory/memory.db", ".", "/dev/null"):
            filled("populate", "bad.jsonl", "--rejects", name, code=2)
        assert (folder / "bad.jsonl").read_bytes() == LINES + b"nonsense\n"
        assert filled("verify")["ok"]

    def test_a_copy(self, filled: Call) -> None:
        assert filled("copy", "memory", "backup")["records"] == 3
        assert filled("get", "cat", "--store", "backup") == filled("get", "cat")
        filled("copy", "memory", "backup", code=4)

    def test_reembed(self, filled: Call) -> None:
        assert filled("reembed") | {"schema_version": 1} == {
            "schema_version": 1, "records": 3, "embedder": "sentence-transformers/all-MiniLM-L6-v2", "dim": 384,
        }  # fmt: skip

    @pytest.mark.parametrize(
        "command",
        [
            "search x",
            "get x",
            "edit x --text y",
            "delete x",
            "stats",
            "verify",
            "rebuild",
            "compact",
            "export f",
            "copy memory b",
            "reembed",
        ],
    )
    def test_no_store_is_exit_4(self, command: str, call: Call) -> None:
        call(*command.split(), code=4)


def test_what_is_stored_cannot_steer_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"id": HOSTILE, "text": HOSTILE, HOSTILE: HOSTILE, "source": HOSTILE}
    (folder / "hostile.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "text": 3}) + "\n")
    assert run(["memory", "populate", "hostile.jsonl"]) == 3
    for words in (
        ["search", "end"],
        ["get", "record:1"],
        ["delete", "--source", HOSTILE],
        ["get", HOSTILE + "?"],
        ["export", HOSTILE],
    ):
        run(["memory", *words])
    shown = capsys.readouterr()
    assert not set(shown.out + shown.err) & set("\x1b\x07\x9b\u202e")
    assert "[red]x[/nope]" in shown.out


def test_a_person_is_told_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["memory", "populate", "facts.jsonl"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "memory: 3 added, 0 updated, 0 unchanged\n"
    assert "records/s" in shown.err
    assert run(["memory", "populate", "facts.jsonl", "-q"]) == 0
    assert capsys.readouterr().out == "3\n"
    assert run(["memory", "get", "cat"]) == 0
    assert "title: Cats" in capsys.readouterr().out


def test_killed_and_run_again_everything_is_there_once(cmrn: Run, folder: Path) -> None:
    lines = [json.dumps({"id": str(i), "text": f"Fact number {i}."}) for i in range(400)]
    (folder / "many.jsonl").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "cmrn_cli.main", "memory", "populate", "many.jsonl", "--batch-size", "5"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    database = folder / "memory" / "memory.db-wal"
    while process.poll() is None and not (database.exists() and database.stat().st_size > 200_000):
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = cmrn("memory", "populate", "many.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["read"] == 400
    assert document["skipped"] > 0
    with MemoryStore.open(folder / "memory") as store:
        assert store.stats().records == 400
        assert store.verify() == []
