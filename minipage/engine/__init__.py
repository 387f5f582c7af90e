"""The engine: requests in, tokens out.

prompts.py, intake.py   what a user hands in, read and checked
completion.py           one text while it grows
request.py              a request on its way, and what its user sees of it
build.py                from options to parts
llm.py                  the loop
changes.py              whatever raises, the engine stays whole
"""

from minipage.engine.llm import LLM

__all__ = ["LLM"]
