"""The engine: requests in, tokens out.

prompts.py, intake.py   what a user hands in, read and checked
conversations.py        what a chat model is asked, as prompts
completion.py           one text while it grows; detokenizer.py holds back what is not whole yet, stop_strings.py what
                        may be the beginning of its end
request.py              a request on its way, and what its user sees of it; sampled.py and beams.py: its two kinds
engine.py               the loop
build.py                from options to parts
llm.py                  an engine from options, with `generate` and `stream`
async_llm.py            the same for asyncio tasks and threads, from a thread of its own; mailbox.py: what they exchange
stats.py                what has been done, counted
recovery.py             whatever raises, the engine stays whole
"""

from minipage.engine.llm import LLM
from minipage.renamed import keep_old_names

__all__ = ["LLM"]

keep_old_names(__name__)
