"""A page to play with a live engine: `python -m minipage play`, or `llm.play()` in a notebook.

run.py          requests on an engine that is made for them, and what came of it in numbers
challenges.py   goals to reach by choosing options well
playground.py   the engine that is shown, in a thread of its own: it rests, goes phase by phase, or runs
acts.py         what the page may ask for, checked
app.py          the addresses: the page, the stream of frames, the acts
cli.py          the command
main.py         from the command line or a notebook to a server that runs
play_page.py    the trace's page, with what can be touched (play.js, play.css)

Needs `pip install minipage[serve]`.
"""
