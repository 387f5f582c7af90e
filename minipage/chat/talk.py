"""The conversation in a terminal, or through pipes: a question a line, the answer as it comes, and what memory did.

In a terminal Ctrl-C stops an answer, and Ctrl-D leaves. Without one there are no colours and no signs of life, and
whatever is asked is printed, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from minipage.errors import InvalidRequestError
from minipage.model.tokenizer import without_surrogates
from minipage.output import output_console
from minipage.trace.drawing.glyphs import DIM, glyphs_for
from minipage.trace.drawing.terminal import MIN_HEIGHT, MIN_WIDTH, draw
from minipage.trace.playing.spinner import spinner
from minipage.trace.recording.recorder import record

if TYPE_CHECKING:
    from minipage.chat.conversation import Conversation
    from minipage.trace.recording.trace import Trace

PROMPT = "> "
PLAIN_SIZE = 80, 24  # of the picture of the pool where there is no terminal to ask
BYTE_ORDER_MARK = "\ufeff"
HELP = {
    "/blocks": "draw the pool: who held which block when the last answer ended",
    "/reset": "begin a new conversation",
    "/help": "this list",
    "/quit": "leave; so does Ctrl-D. Ctrl-C stops an answer",
}
FULL = "The context of {} tokens is full: /reset begins a new conversation."


class Talk:
    """Reads questions and commands until there are no more."""

    trace: Trace  # of all that is computed meanwhile

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.console = output_console()
        self.interactive = sys.stdin.isatty()
        self.failed = False
        self.commands: dict[str, Callable[[], object]] = {
            "/blocks": self.blocks,
            "/reset": self.reset,
            "/help": self.help,
        }

    def run(self) -> int:
        """Returns the exit code: 1 if a question was not answered, and nobody was there to see it."""
        if self.interactive:
            self.say("Ask something. /help lists the commands, Ctrl-D leaves.")
            with suppress(ImportError):
                import readline  # noqa: F401 (lines can be edited, and earlier ones come back)
        with record(self.conversation.llm, "chat") as self.trace:
            while self.goes_on():
                pass
        return 1 if self.failed and not self.interactive else 0

    def goes_on(self) -> bool:
        """Read a line and do what it says; False: there are no more. Ctrl-C ends nothing but what is going on."""
        try:
            line = self.read()
            if line and line != "/quit":
                self.take(line)
            return line is not None and line != "/quit"
        except KeyboardInterrupt:  # while something is typed, or drawn, or just when an answer has ended
            if not self.interactive:
                raise
            with suppress(KeyboardInterrupt):  # some press it twice
                print()
                self.say("Ctrl-D leaves.")
            return True

    def read(self) -> str | None:
        """What is typed, or the next line of standard input; None at its end."""
        try:
            line = input(PROMPT) if self.interactive else sys.stdin.readline()
        except EOFError:  # Ctrl-D
            print()
            return None
        if not self.interactive and not line:
            return None
        line = without_surrogates(line).removeprefix(BYTE_ORDER_MARK).strip()
        if line and not self.interactive:
            print(f"{PROMPT}{line}", flush=True)
        return line

    def take(self, line: str) -> None:
        word = line.split()[0]
        if not (word.startswith("/") and word[1:].isalpha()):  # /etc/hosts may well be asked about
            return self.answer(line)
        command = self.commands.get(line)
        if command is None:
            self.say(f"There is no command {line}. Known are {', '.join(HELP)}.")
        else:
            command()

    def answer(self, question: str) -> None:
        """Stream an answer, and say what memory did."""
        conversation = self.conversation
        screen = Wrapped(self.console.width) if self.interactive and self.console.is_terminal else Plain()
        stopped = False
        try:
            with closing(conversation.ask(question)) as pieces:
                with spinner("computing what is new"):
                    piece = next(pieces, None)
                while piece is not None:
                    screen.write(piece)
                    piece = next(pieces, None)
        except InvalidRequestError as error:
            self.failed = True
            print(f"minipage: {error}\n{self.way_out()}", file=sys.stderr, flush=True)
            return
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            stopped = True
        screen.end()
        if stopped:
            said = conversation.messages and conversation.messages[-1]["role"] == "assistant"
            kept = "what it has said is kept" if said and conversation.answer else "the question is taken back"
            self.say(f"Stopped; {kept}.")
        if conversation.answer and conversation.answer.error:
            self.failed = True
            print(f"minipage: {conversation.answer.error}", file=sys.stderr, flush=True)
        if conversation.answer:
            self.say(conversation.report())
        if conversation.is_full:
            self.say(FULL.format(conversation.llm.max_model_len))

    def way_out(self) -> str:
        """What to do when a question cannot be served."""
        if not self.conversation.has_turns:
            return "The question is taken back: ask something shorter."
        return "The question is taken back: ask something shorter, or /reset begins a new conversation."

    # ---- commands

    def blocks(self) -> None:
        """The pool when the last token was chosen: the conversation still held its blocks then."""
        chosen = [i for i, change in enumerate(self.trace.changes) if change["phase"] == "sample"]
        if not chosen:
            return self.say("Nothing was computed yet: all blocks are free.")
        width, height = self.console.size if self.console.is_terminal else PLAIN_SIZE
        size = max(width, MIN_WIDTH), max(height - 2, MIN_HEIGHT)
        picture = draw(self.trace[chosen[-1]], *size, glyphs_for(self.console.encoding))
        while picture.renderables and not str(picture.renderables[-1]).strip():  # lines that nothing needed
            picture.renderables.pop()
        self.console.print(picture)

    def reset(self) -> None:
        self.conversation.reset()
        self.say("A new conversation. Blocks of the old one can be found until they are needed.")

    def help(self) -> None:
        for command, meaning in HELP.items():
            self.say(f"{command:8} {meaning}")

    def say(self, sentence: str) -> None:
        """Something that is not the model's."""
        self.console.print(Text(sentence, DIM), soft_wrap=not self.console.is_terminal)


class Plain:
    """An answer as it is."""

    def write(self, text: str) -> None:
        print(harmless(text), end="", flush=True)

    def end(self) -> None:
        print(flush=True)


class Wrapped(Plain):
    """An answer whose lines end between words. A word is shown when it is complete."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.column = 0
        self.word = ""

    def write(self, text: str) -> None:
        for char in harmless(text):
            if not char.isspace():
                self.word += char
                continue
            self._put_word()
            if char == "\n" or self.column + 1 >= self.width:
                print(flush=True)
                self.column = 0
            else:
                print(" ", end="", flush=True)
                self.column += 1
        if cell_len(self.word) >= self.width:  # no end in sight
            self._put_word()

    def end(self) -> None:
        self._put_word()
        print(flush=True)

    def _put_word(self) -> None:
        cells = cell_len(self.word)
        if self.column and self.column + cells > self.width:
            print()
            self.column = 0
        print(self.word, end="", flush=True)
        self.column = self.column + cells if self.column + cells <= self.width else cells % self.width
        self.word = ""


def harmless(text: str) -> str:
    """Without signs that would move the cursor or change colours: a model may say anything."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
