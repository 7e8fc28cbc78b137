"""The reader of pages is itself tested: a page that says something else must fail."""

from __future__ import annotations

import pytest

from tests.docs.blocks import Command, blocks, commands, shown_matches

PAGE = """# Title

```sh
# a comment
pip install -e '.[cpu]' && cmrn train recipes/quickstart.yaml
echo 'a | b' | cmrn trace - > out.json
```

<!-- not run: needs a network -->
```console
$ cmrn trace "integral" \\
    --json
{"experts": …}
$ cmrn recipe ls
quickstart
```
"""


def test_commands_are_found_with_what_they_print() -> None:
    script, session = blocks(PAGE, "page.md")
    assert script.place == "page.md:3"
    assert [command.segments for command in commands(script)] == [
        [["pip", "install", "-e", ".[cpu]"], ["cmrn", "train", "recipes/quickstart.yaml"]],
        [["echo", "a | b"], ["cmrn", "trace", "-"]],
    ]
    assert session.why_not == "needs a network"
    assert [(c.segments, c.printed, c.runs) for c in commands(session)] == [
        ([["cmrn", "trace", "integral", "--json"]], '{"experts": …}', False),
        ([["cmrn", "recipe", "ls"]], "quickstart", False),
    ]


@pytest.mark.parametrize(
    ("shown", "actual", "numbers", "same"),
    [
        ("math  1.53", "math 1.53\n", True, True),
        ("math 1.53", "math 1.54", True, False),
        ("math 1.53", "math 11.2", False, True),
        ("math 1.53", "code 1.53", False, False),
        ("first\n…\nlast", "first\nand\nmany\nlast", True, True),
        ("first\n…\nlast", "first\nlast", True, True),
        ("first ... last", "first but not at the end", True, False),
        ("a (b) [c]*", "\x1b[1ma\x1b[0m (b) [c]*", True, True),
    ],
)
def test_printed_text_is_compared(shown: str, actual: str, numbers: bool, same: bool) -> None:
    assert shown_matches(shown, actual, numbers=numbers) is same


def test_a_comment_after_a_command_is_no_argument() -> None:
    assert Command("p:1", "cmrn doctor  # what is here", "", True).segments == [["cmrn", "doctor"]]
