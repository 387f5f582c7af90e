"""Two hypothesis profiles.

ci        the default: the same examples every time, so a red test is red for everybody
thorough  MINIPAGE_HYPOTHESIS=thorough: many more, new ones each time, for a change to the memory manager or scheduler
"""

import os

from hypothesis import settings

# No deadline: the first call of a kernel compiles it, which takes seconds.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=2_000, stateful_step_count=100, deadline=None)
settings.load_profile(os.environ.get("MINIPAGE_HYPOTHESIS", "ci"))
