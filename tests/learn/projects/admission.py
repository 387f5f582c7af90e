"""Every second of those who run will want a block soon: leave these in the queue."""


def admit(needed, num_free, running, block_size):
    return needed + len(running) / 2 <= num_free
