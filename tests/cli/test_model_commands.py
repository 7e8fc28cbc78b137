from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from cmrn_cli.main import run

Capture = pytest.CaptureFixture[str]
HOSTILE = "integral \x1b[31m\u202e\x9b of\r\nlaw \U000e0041"


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


class TestTrace:
    def test_json_has_the_fixed_keys_and_both_names_print_the_same(self, checkpoint: Path, capsys: Capture) -> None:
        assert run(["trace", HOSTILE, "-m", str(checkpoint), "--json"]) == 0
        printed = capsys.readouterr().out
        assert run(["trace-routing", HOSTILE, "-m", str(checkpoint), "--json"]) == 0
        assert capsys.readouterr().out == printed
        assert printed.isascii()
        assert "\x1b" not in printed
        document = json.loads(printed)
        assert set(document) == {"schema_version", "experts", "tokens", "events", "unseen"}
        assert {frozenset(expert) for expert in document["experts"]} == {frozenset({"name", "domains", "weight"})}
        for token in document["tokens"]:
            assert set(token) == {"text", "start", "end", "experts", "blocks", "memory", "surprise", "unowned"}
            assert sum(expert["weight"] for expert in token["experts"]) == pytest.approx(1, abs=1e-5)
            assert token["text"] == HOSTILE[token["start"] : token["end"]]
        assert sum(expert["weight"] for expert in document["experts"]) == pytest.approx(1, abs=1e-5)
        assert all(set(event) == {"start", "end", "surprise", "previous"} for event in document["events"])

    def test_the_picture_names_every_expert_and_is_safe(self, checkpoint: Path, capsys: Capture) -> None:
        assert run(["trace", HOSTILE, "-m", str(checkpoint)]) == 0
        shown = capsys.readouterr().out
        assert "math" in shown
        assert "legal" in shown
        assert "event 1 begins" in shown
        assert "\\x1b" in shown
        assert not set(shown) & set("\x1b\u202e\x9b\r\U000e0041")
        assert "block 1" not in shown
        assert run(["trace", HOSTILE, "-m", str(checkpoint), "-v"]) == 0
        assert "block 1" in capsys.readouterr().out

    def test_every_character_is_shown_once_without_colour(
        self, checkpoint: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "1000")
        text = "é 漢字 \U0001f600 the law"
        assert run(["trace", text, "-m", str(checkpoint)]) == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert re.sub(r" ?\[(math|legal)\] ", "", first).replace("‖", "").rstrip() == text

    def test_stdin(self, checkpoint: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        give_stdin(monkeypatch, b"the law")
        assert run(["trace", "-", "-m", str(checkpoint), "--json"]) == 0
        assert "".join(token["text"] for token in json.loads(capsys.readouterr().out)["tokens"]) == "the law"
        give_stdin(monkeypatch, b"law \xff")
        assert run(["trace", "-", "-m", str(checkpoint)]) == 3
        assert "byte 4" in capsys.readouterr().err

    def test_empty_text_is_exit_3(self, checkpoint: Path, capsys: Capture) -> None:
        assert run(["trace", "", "-m", str(checkpoint), "--json"]) == 3
        assert json.loads(capsys.readouterr().err)["error"]["code"] == 3


class TestGenerate:
    def test_the_text_alone_is_on_stdout_and_a_seed_repeats_it(self, checkpoint: Path, capsys: Capture) -> None:
        arguments = ["generate", "the law", "-m", str(checkpoint), "--max-new-tokens", "12"]
        assert run([*arguments, "--seed", "7"]) == 0
        streamed = capsys.readouterr()
        assert streamed.out.startswith("the law")
        assert "12 written" in streamed.err
        assert "seed 7" in streamed.err
        assert run([*arguments, "--seed", "7", "--no-stream"]) == 0
        assert capsys.readouterr().out == streamed.out
        assert run(["--seed", "8", *arguments]) == 0
        assert capsys.readouterr().out != streamed.out

    def test_json(self, checkpoint: Path, capsys: Capture) -> None:
        assert run(["generate", "the law", "-m", str(checkpoint), "--max-new-tokens", "5", "--json"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out.isascii()
        document = json.loads(printed.out)
        assert set(document) == {"schema_version", "text", "prompt_tokens", "new_tokens", "tokens_per_s", "memory_hits"}
        assert document["new_tokens"] == 5
        assert document["memory_hits"] == []

    def test_an_untrained_model_writes_bytes_that_cannot_steer_the_terminal(
        self, checkpoint: Path, capsys: Capture
    ) -> None:
        assert run(["generate", HOSTILE, "-m", str(checkpoint), "--temperature", "3", "--max-new-tokens", "200"]) == 0
        shown = capsys.readouterr().out
        assert not any(ord(character) < 32 and character not in "\n\t" for character in shown)
        assert not any(0x7F <= ord(character) < 0xA0 for character in shown)

    def test_quiet_prints_the_new_text_only(self, checkpoint: Path, capsys: Capture) -> None:
        arguments = ["generate", "the law", "-m", str(checkpoint), "--max-new-tokens", "6", "--temperature", "0"]
        assert run([*arguments, "-q"]) == 0
        quiet = capsys.readouterr()
        assert quiet.err == ""
        assert run(arguments) == 0
        assert capsys.readouterr().out == "the law" + quiet.out

    @pytest.mark.parametrize("flags", [["--stop", ""], ["--top-p", "1.5"], ["--max-new-tokens", "0"]])
    def test_bad_settings_are_exit_2(self, checkpoint: Path, capsys: Capture, flags: list[str]) -> None:
        assert run(["generate", "x", "-m", str(checkpoint), *flags]) == 2
        assert capsys.readouterr().err.startswith("error: ")


class TestFinding:
    @pytest.mark.parametrize("command", [["trace", "x"], ["generate", "x"], ["eval"]])
    def test_no_run_is_exit_4_and_says_how_to_make_one(
        self, command: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run(command) == 4
        assert "cmrn train" in capsys.readouterr().err
        assert run([*command, "-m", "cmrn-base"]) == 4
        assert "cmrn-base" in capsys.readouterr().err

    def test_a_corrupt_checkpoint_is_exit_4(self, checkpoint: Path, capsys: Capture, tmp_path: Path) -> None:
        import shutil

        copy = shutil.copytree(checkpoint, tmp_path / "copy")
        weights = copy / "backbone.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        assert run(["trace", "x", "-m", str(copy)]) == 4
        assert "backbone.safetensors" in capsys.readouterr().err


class TestEval:
    def test_files_by_domain(self, checkpoint: Path, capsys: Capture, tmp_path: Path) -> None:
        records = [{"text": "the integral of x", "domain": "math"}, {"text": "the court of law", "domain": "legal"}]
        jsonl = tmp_path / "held.jsonl"
        jsonl.write_text("\n".join(map(json.dumps, records)), "utf-8")
        plain = tmp_path / "held.txt"
        plain.write_text("the law is here", "utf-8")
        assert run(["eval", "-m", str(checkpoint), "--data", str(jsonl), "--data", str(plain), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert set(document) == {"schema_version", "bits_per_byte", "tokens", "routing_purity", "unseen"}
        assert set(document["bits_per_byte"]) == {"math", "legal", "unlabelled", "mean"}
        assert set(document["routing_purity"]) == {"math", "legal", "mean"}
        assert run(["eval", "-m", str(checkpoint), "--data", str(jsonl), str(plain)]) == 0
        shown = capsys.readouterr().out
        assert "unlabelled" in shown
        assert f"{document['bits_per_byte']['mean']:.3f}" in shown

    @pytest.mark.parametrize(
        ("name", "content", "code"),
        [("gone.txt", None, 2), ("empty.txt", b"", 3), ("bad.txt", b"\xff\xfe", 3), ("bad.jsonl", b"{", 3),
         ("one.txt", b"a", 3), ("what.pdf", b"x", 2)],
    )  # fmt: skip
    def test_bad_files(
        self, checkpoint: Path, capsys: Capture, tmp_path: Path, name: str, content: bytes | None, code: int
    ) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert run(["eval", "-m", str(checkpoint), "--data", str(tmp_path / name)]) == code
        assert "error: " in capsys.readouterr().err

    def test_a_model_outside_a_run_needs_files(self, checkpoint: Path, capsys: Capture) -> None:
        assert run(["eval", "-m", str(checkpoint)]) == 2
        assert "--data" in capsys.readouterr().err
