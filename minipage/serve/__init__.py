"""An OpenAI-compatible server: `minipage serve`.

command.py      from the command line
main.py         to a server that runs, and to its end
app.py          which address is answered by what
access.py       before and after each request: the key, the request's id, a line of log
limits.py       what nobody may do to the others: huge bodies, slow senders, a queue without end
protocol.py     what clients may send, as pydantic models
params.py       from a client's fields to SamplingParams
completions.py  /v1/completions
chat.py         /v1/chat/completions
generation.py   what these two share: prompts in, outputs as they come, usage, events
live.py         the memory, live: the page of `GET /`
logprobs.py     log probabilities in OpenAI's two formats
errors.py       errors in OpenAI's format
metrics.py      LLM.stats() in Prometheus's format

Needs `pip install minipage[serve]`.
"""
