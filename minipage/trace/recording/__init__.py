"""What is seen of a running engine, and how it is kept.

frames.py          what an engine looked like at one moment, as plain data that never changes
recorder.py        watches a running LLM and writes down what each phase changed
trace.py           a trace: those changes, saved and loaded, and the frames that follow from them
replay.py          brings the engine's state from one change to the next, and makes a frame of it
events.py          puts what a phase did into sentences
vocabulary.py      the bytes of a token
comparison.py      beside the engine: the same requests in contiguous memories
attention_walk.py  beside the engine: one attention call from inside, block by block
"""
