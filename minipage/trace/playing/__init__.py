"""The demo: stories on the real engine, shown on a full screen, printed, or written into files.

demo.py         runs a story, or shows a saved trace
scenarios.py    the stories
story.py        what a story is made of
story_texts.py  what its requests ask the model to go on with
cues.py         what a sentence of a story waits for
pool_size.py    how large a pool a story needs
player.py       steps through frames on a full screen
keys.py         single keys from the keyboard
spinner.py      says what takes long
help.py         how to read the picture
"""
