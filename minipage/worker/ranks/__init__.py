"""One model in several processes: each rank has a part of the weights and of K and V. A reader can skip this folder.

    rank 0   engine ─▶ LeadingRunner ── one message a step ──▶ rank 1 ... N-1   follow()
                            │                                       │
                       its runner ◀── all-reduce, gather ──▶  their runners

message.py        a step as one flat array
process_group.py  how ranks talk: torch.distributed's gloo
leader.py         rank 0: tells the others, and computes its own part
follower.py       every other rank: does what it is told
meeting.py        how ranks are started, and find each other
watch.py          who is dead, or hangs

The scheduler, the block tables and the caches know nothing of it: a block is some tokens, whoever has which heads.
"""
