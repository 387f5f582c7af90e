"""Least slack first: who has the least time to spare, beyond what its own prompt takes."""


def place(job, now):
    slack = job.deadline - 0.1 * len(job.prompt)
    return slack
