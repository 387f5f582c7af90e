"""The exercises: `python -m minipage learn`. The stubs are in lessons/; what comes out are parts of the engine.

course      which exercises there are, with hints and explanations (texts/*.md)
workspace   the learner's folder: their files, and what they have passed
load        a file of theirs as a module; everything that can go wrong becomes a sentence with file and line
diary       writes down the calls that a check makes, and draws the block pool
judge       runs the graders of one exercise (graders/test_*.py) on a solution, and says what came of it
child       does that in processes of their own; check.py gives the orders
fence       what an exercise cannot do there; seal: whether the judge is what it was; origin: whose code it is
originals   minipage's own files, put back if somebody has changed them
mine        composes an engine of the learner's parts: `demo --mine`
"""
