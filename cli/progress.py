"""Training as it is watched: live on a terminal, a line every ten seconds elsewhere, JSON lines for scripts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cmrn_cli.console import Settings, console, has_unicode, is_live, sanitize
from cmrn_cli.draw import bar, duration, sparkline
from cmrn_cli.output import write_json_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

    from cmrn.training.progress import EvaluationReport, Notice, Reporter, StepReport

__all__ = ["JsonReporter", "LiveReporter", "PlainReporter", "watch"]

LINE_EVERY_SECONDS = 10.0
MOST_EXPERTS = 12


@contextmanager
def watch(settings: Settings) -> Iterator[Reporter]:
    """The reporter that suits the settings and the terminal, for as long as the block runs."""
    if settings.json:
        yield JsonReporter()
    elif is_live(settings):
        from rich.live import Live

        screen = console(settings, stderr=True)
        with Live(console=screen, refresh_per_second=4, redirect_stdout=False) as live:
            yield LiveReporter(live, screen)
    else:
        yield PlainReporter(quiet=settings.quiet)


class JsonReporter:
    """One JSON line on stdout for every step and evaluation; notices on stderr."""

    def step(self, report: StepReport) -> None:
        """Print a step."""
        write_json_line(
            {
                "event": "step",
                "step": report.step,
                "loss": report.loss,
                "tokens_per_s": report.tokens_per_second,
                "learning_rate": report.learning_rate,
                "expert_load": dict(report.expert_load),
                "skipped": report.skipped,
            }
        )

    def evaluation(self, report: EvaluationReport) -> None:
        """Print an evaluation."""
        write_json_line(
            {
                "event": "evaluation",
                "step": report.step,
                "bits_per_byte": dict(report.bits_per_byte),
                "routing_purity": dict(report.routing_purity),
                "tokens": report.tokens,
                "seconds": report.seconds,
                "final": report.final,
            }
        )

    def notice(self, notice: Notice) -> None:
        """Print a notice on stderr."""
        _say(_notice_line(notice))


class PlainReporter:
    """Lines on stderr: the first and last step and one every ten seconds, every evaluation and notice."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.spoke_at = -LINE_EVERY_SECONDS

    def step(self, report: StepReport) -> None:
        """Print the step if ten seconds have passed, or it is the last."""
        now = time.monotonic()
        if self.quiet or (now - self.spoke_at < LINE_EVERY_SECONDS and report.step < report.max_steps):
            return
        self.spoke_at = now
        load = " ".join(f"{name} {share:.0%}" for name, share in _loads(report.expert_load).items())
        _say(f"{_step_line(report)}  load {load}")

    def evaluation(self, report: EvaluationReport) -> None:
        """Print the evaluation."""
        if not self.quiet:
            _say(f"step {report.step}  bits per byte  {_figures(report.bits_per_byte)}")

    def notice(self, notice: Notice) -> None:
        """Print the notice; when quiet, a warning only."""
        if not self.quiet or notice.level == "warning":
            _say(_notice_line(notice))


class LiveReporter:
    """A display on a terminal, redrawn a few times a second."""

    def __init__(self, live: Live, screen: Console) -> None:
        self.live = live
        self.screen = screen
        self.unicode = has_unicode(screen.encoding)
        self.losses: list[float] = []
        self.last_step: StepReport | None = None
        self.last_evaluation: EvaluationReport | None = None

    def step(self, report: StepReport) -> None:
        """Redraw with a new step."""
        self.losses.append(report.loss)
        self.last_step = report
        self.live.update(self.render())

    def evaluation(self, report: EvaluationReport) -> None:
        """Redraw with a new evaluation."""
        self.last_evaluation = report
        self.live.update(self.render())

    def notice(self, notice: Notice) -> None:
        """Print the notice above the display."""
        self.screen.print(_text(_notice_line(notice), "yellow" if notice.level == "warning" else "dim"))

    def render(self) -> RenderableType:
        """The display as it stands."""
        from rich.console import Group

        lines: list[Text] = []
        if self.last_step is not None:
            lines += self._step_lines(self.last_step)
        if self.last_evaluation is not None:
            evaluation = self.last_evaluation
            line = _text("bits per byte ", "bold")
            line.append(sanitize(f"{_figures(evaluation.bits_per_byte)}  (step {evaluation.step})"))
            lines.append(line)
        return Group(*lines)

    def _step_lines(self, report: StepReport) -> list[Text]:
        share = report.step / max(1, report.max_steps)
        progress = _text(f"step {report.step}/{report.max_steps} ", "bold")
        progress.append(bar(share, 24, unicode=self.unicode), "green")
        progress.append(f" {share:.0%}  {report.tokens_per_second:,.0f} tok/s  ETA {duration(report.eta_seconds)}")
        loss = _text("loss ", "bold")
        loss.append(f"{report.loss:.3f} ")
        loss.append(sparkline(self.losses, 48, unicode=self.unicode), "cyan")
        load = _text("expert load", "bold")
        for name, part in _loads(report.expert_load).items():
            load.append(f"  {sanitize(name, one_line=True)} ")
            load.append(bar(part, 8, unicode=self.unicode), "magenta")
            load.append(f"{part:.0%}")
        return [progress, loss, load]


def _text(content: str, style: str) -> Text:
    from rich.text import Text

    line = Text()
    line.append(sanitize(content), style)
    return line


def _step_line(report: StepReport) -> str:
    skipped = "  skipped: not a number" if report.skipped else ""
    return (
        f"step {report.step}/{report.max_steps}  loss {report.loss:.3f}  {report.tokens_per_second:,.0f} tok/s  "
        f"ETA {duration(report.eta_seconds)}{skipped}"
    )


def _figures(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in figures.items())


def _loads(loads: Mapping[str, float]) -> dict[str, float]:
    """The loads in the model's order; of a great many experts the busiest, still in that order."""
    busiest = set(sorted(loads, key=lambda name: -loads[name])[:MOST_EXPERTS])
    return {name: share for name, share in loads.items() if name in busiest}


def _notice_line(notice: Notice) -> str:
    return f"warning: {notice.message}" if notice.level == "warning" else notice.message


def _say(line: str) -> None:
    """One line on stderr; a run does not end because nobody reads its progress any more."""
    try:
        sys.stderr.write(sanitize(line) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        return
