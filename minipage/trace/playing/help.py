"""What the demo says when it is asked for help: how to read the picture that is on the screen, and the keys."""

from __future__ import annotations

from minipage.trace.recording.frames import Frame

KEYS = """\
 space  pause, play      right or n  next      home  to the first   + -  speed
 p      phases or steps  left or b   back      end   to the last    q    leave
 12 enter  jump to step 12
"""

HELP = """\
 How to read this                                                 any key: back

 A request is a letter and a colour. Its text grows by one token a step: dim is
 the prompt, underlined is what this step has added.

 The keys and values (K and V) of its tokens are kept in blocks of a few slots.
 To the request its blocks are in order, 0, 1, 2, ... (logical blocks). In
 memory they are wherever there was room: the arrow leads to the number of the
 physical block. That list of numbers is its block table, as in an operating
 system. What this step has written is turned inside out, or has a star.

 The underlined token has no slot yet: the next step computes and stores it.
 A number at a block says how many texts share it. Whoever has to write into a
 shared block gets a copy of it first: copy-on-write.

 "paged" is the memory in use: each request's tokens, then the empty slots of
 its last block. "contiguous" is what the same requests would have to reserve
 in one piece each, because nobody knows how long they will get.

"""

BESIDE = """\
 How to read this                                                 any key: back

 Four memories of the same size serve the same requests in the same order.
 Three of them keep a request in one piece, and reserve the piece beforehand:

 longest case  for the longest text that the model can write
 power of two  for a guess: the answer's length, rounded up to 2, 4, 8, 16, ...
 oracle        for the true length, as if it were known
 in blocks     nothing is reserved: a block at a time, wherever one is free

 Each cell is a share of the memory's slots. A letter: words of that request; a
 to z are AA to AZ, and + is anybody from BA on. later: reserved, and it will be
 used. never: reserved, and never used. free: nobody's; but if the free slots
 lie apart, no piece fits into them.

"""

WALK = """\
 How to read this                                                 any key: back

 Inside one attention call: the query of the newest token, in one head of one
 layer, looks at every earlier token, a block at a time, in the order of the
 block table.

 score    query . key of that token * scale: how much it matters
 weight   e ^ (score - highest score so far)
 maximum, sum, output   all that is kept from block to block: the highest score,
          the sum of the weights, and the sum of weight * value (a value is a
          row of numbers, and so is the output)
 shrink   e ^ (old maximum - new maximum): a new highest score makes all that
          was summed up before smaller by this factor

 At the end output / sum is attention. This is the online softmax.

"""


def help_for(frame: Frame) -> str:
    """How to read this frame's picture: at most 24 lines of 80 columns, in ASCII."""
    return (BESIDE if frame.contiguous else WALK if frame.attention else HELP) + KEYS
