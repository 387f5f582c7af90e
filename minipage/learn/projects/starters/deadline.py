"""A deadline policy: who is served first, if everybody waits for a first token and some wait less patiently?

The score is the share of requests, in per cent, whose first token comes in time. This file is first come, first served.
"""


def place(job, now):
    """The place of a request in the queue, when it arrives: the smallest is served first, the largest gives way first.

    job: has `arrival` and `deadline` (milliseconds), `prompt` (token ids) and `num_output_tokens`; now: milliseconds.
    """
    return job.arrival
