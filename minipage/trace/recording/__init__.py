"""What is seen of a running engine, and how it is kept.

frames.py      what an engine looked like at one moment, as plain data that never changes
recorder.py    watches a running LLM and writes down what each phase changed
replay.py      a trace: those changes, saved and loaded, and the frames that follow from them
state.py       the engine while a trace is replayed
events.py      puts what a phase did into sentences
vocabulary.py  the bytes of a token
comparison.py  beside the engine: the same requests in contiguous memories
walk.py        beside the engine: one attention call from inside, block by block
"""
