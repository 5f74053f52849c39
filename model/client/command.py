"""`qwen3-vl describe`, from its arguments to its exit status."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections import deque
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Final, TypeAlias, TypeVar

from model.client.arguments import parse_options
from model.client.asking import Asker, KeyRefused, NoAnswer, Patience, Unavailable
from model.client.output import Answers, Result, Screen, take_up
from model.client.pictures import NoPictures, Picture, UnreadablePicture, find_pictures

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
    from collections.abc import Sequence as Seq
    from contextlib import AbstractAsyncContextManager

    from model.client.app_transport import AppTransport
    from model.client.arguments import Options

T = TypeVar("T")
R = TypeVar("R")

EXIT_DESCRIBED: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNAVAILABLE: Final = 3
EXIT_KEY_REFUSED: Final = 4
# As a shell reports an end by SIGINT and by SIGPIPE.
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE_CLOSED: Final = 141

IN_PROCESS_URL: Final = "http://in-process"
# How many questions for each that is asked at once may be ahead of the one whose turn it is to be
# written: a slow answer does not hold up the others.
AHEAD: Final = 4

# One question is about one picture, or about several together.
Question: TypeAlias = tuple[Picture, ...]


class UnusableOutput(Exception):
    """A file that answers cannot be written to; its text is for the user."""


def main(arguments: Seq[str], environ: Mapping[str, str]) -> int:
    """Describe what the arguments name; the exit status, as `--help` explains it."""
    options = parse_options(arguments, environ)
    screen = Screen(quiet=options.quiet)
    try:
        return _main(options, environ, screen)
    except UnusableOutput as e:
        screen.fault(str(e))
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Else Python would write what is left at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except OSError as e:
        screen.fault(f"the answers cannot be written: {e.strerror}")
        return EXIT_FAILED
    finally:
        screen.stop()


def _main(options: Options, environ: Mapping[str, str], screen: Screen) -> int:
    try:
        questions = _questions(options)
    except UnreadablePicture as e:
        screen.fault(f"standard input: {e}")
        return EXIT_FAILED
    except (NoPictures, ValueError) as e:
        screen.fault(str(e))
        return EXIT_USAGE
    with _output(options) as file:
        if not questions:
            screen.notice(f"{options.output} has all answers")
            return EXIT_DESCRIBED
        run_model = None
        if options.url is None:
            from model.client.in_process import UnusableModel, UnusableSettings, load_model

            try:
                run_model = load_model(options.model_arguments, environ, quiet=options.quiet)
            except (UnusableModel, UnusableSettings) as e:
                screen.fault(str(e))
                return EXIT_USAGE if isinstance(e, UnusableSettings) else EXIT_UNAVAILABLE
        answers = Answers(file, screen, as_json=options.json, labelled=len(questions) > 1)
        return asyncio.run(_describe(questions, options, run_model, answers, screen))


def _questions(options: Options) -> list[Question]:
    """What is to be asked; raises NoPictures, UnreadablePicture, and ValueError of `take_up`."""
    pictures = find_pictures(options.sources, recursive=options.recursive)
    questions: list[Question] = [(one,) for one in pictures]
    if options.together:
        questions = [tuple(pictures)]
    if not options.skip_done:
        return questions
    assert options.output is not None
    done = take_up(options.output)
    return [question for question in questions if _names(question) not in done]


@contextmanager
def _output(options: Options) -> Iterator[IO[str]]:
    """Standard output, or the file. JSON is UTF-8; nothing else fails for a terminal's lack of
    characters.

    Raises UnusableOutput.
    """
    if options.output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            encoding = "utf-8" if options.json else None
            sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
        yield sys.stdout
        return
    mode = "a" if options.skip_done else "w"
    try:
        file = options.output.open(mode, encoding="utf-8", errors="backslashreplace")
    except OSError as e:
        raise UnusableOutput(f"{options.output} cannot be written: {e.strerror}") from e
    with file:
        yield file


async def _describe(
    questions: Seq[Question],
    options: Options,
    run_model: Callable[[], AbstractAsyncContextManager[AppTransport]] | None,
    answers: Answers,
    screen: Screen,
) -> int:
    patience = Patience(options.timeout_seconds, options.wait_seconds)
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(run_model()) if run_model else None
        asker = Asker(
            options.url or IN_PROCESS_URL, options.api_key, patience, screen.notice, transport
        )
        await stack.enter_async_context(asker)
        return await _Run(asker, options, answers, screen).describe(questions)


@dataclass(frozen=True, slots=True)
class _Run:
    """One command's questions, asked and answered."""

    asker: Asker
    options: Options
    answers: Answers
    screen: Screen

    async def describe(self, questions: Seq[Question]) -> int:
        """Ask everything, or until no further question can be answered; the exit status."""
        num_told = num_failed = 0
        self.screen.start(0 if self.options.stream else len(questions))
        try:
            async with aclosing(in_order(questions, self.ask, self.options.concurrency)) as results:
                async for result in results:
                    self.answers.tell(result)
                    num_told += 1
                    num_failed += result.answer is None
        except (KeyRefused, Unavailable) as e:
            self.screen.fault(str(e))
            self._sum_up(len(questions), num_failed + len(questions) - num_told)
            return EXIT_KEY_REFUSED if isinstance(e, KeyRefused) else EXIT_UNAVAILABLE
        self._sum_up(len(questions), num_failed)
        return EXIT_FAILED if num_failed else EXIT_DESCRIBED

    async def ask(self, question: Question) -> Result:
        """The result of one question; raises KeyRefused or Unavailable where all would fail."""
        names = _names(question)
        on_text = partial(self.answers.piece, names) if self.options.stream else None
        try:
            images = await asyncio.to_thread(_contents, question)
            answer = await self.asker.ask({**self.options.question, "image": images}, on_text)
        except (KeyRefused, Unavailable):
            raise
        except UnreadablePicture as e:
            return Result(names, error=str(e))
        except NoAnswer as e:
            return Result(names, error=str(e), status=e.status)
        finally:
            self.screen.advance()
        return Result(names, answer)

    def _sum_up(self, num_asked: int, num_failed: int) -> None:
        if num_failed and num_asked > 1:
            self.screen.fault(f"{num_failed} of {num_asked} are not described")


async def in_order(
    questions: Iterable[T], ask: Callable[[T], Awaitable[R]], concurrency: int
) -> AsyncGenerator[R, None]:
    """Results in the order of the questions, `concurrency` of them asked at once.

    The first exception ends it; what is asked then, or when the generator is closed, is cancelled.
    """
    slots = asyncio.Semaphore(concurrency)

    async def one(question: T) -> R:
        async with slots:
            return await ask(question)

    ahead: deque[asyncio.Task[R]] = deque()
    try:
        for question in questions:
            ahead.append(asyncio.create_task(one(question)))
            if len(ahead) >= AHEAD * concurrency:
                yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


def _names(question: Question) -> tuple[str, ...]:
    return tuple(picture.name for picture in question)


def _contents(question: Question) -> list[str]:
    """The `image` field; raises UnreadablePicture, which names the file where it is one of many."""
    contents = []
    for picture in question:
        try:
            contents.append(picture.content())
        except UnreadablePicture as e:
            which = f"{picture.name}: " if len(question) > 1 else ""
            raise UnreadablePicture(f"{which}{e}") from e
    return contents
