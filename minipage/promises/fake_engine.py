"""An engine without a model: it carries out the plans of a scheduler on dictionaries.

A dictionary stands for the KV cache. The K and V of a token depend on all the tokens before it, so what a slot holds is
described exactly by a prefix: the salt of the request, and the tokens up to and including the slot's own.

    pool.slots = {28: ("", t0), 29: ("", t0, t1), 30: ("", t0, t1, t2), ...}

The next token of a text follows from the text alone, as with a real model, so equal texts go on alike.
"""

from zlib import crc32

from minipage.memory import BlockPool
from minipage.scheduling import Sequence


class WatchedPool(BlockPool):
    """A pool that has slots, and notes which blocks it hands out: what they held is lost. Revived ones keep it."""

    def __init__(self, num_blocks, block_size):
        super().__init__(num_blocks, block_size)
        self.slots = {}  # slot -> the prefix whose K and V were written there
        self.handed_out = []

    def allocate_many(self, count):
        blocks = super().allocate_many(count)
        self.handed_out += blocks
        return blocks

    def lose_old_contents(self):
        """Reading what a reused block held before must not come out right by luck."""
        for block in self.handed_out:
            for offset in range(self.block_size):
                self.slots.pop(block * self.block_size + offset, None)
        self.handed_out.clear()


def copy_blocks(source_pool, destination_pool, copies):
    """All sources are read before the first destination is written, as a batched copy on a GPU may do it."""
    size = source_pool.block_size
    contents = [[source_pool.slots.get(source * size + i) for i in range(size)] for source, _ in copies]
    for (_, destination), prefixes in zip(copies, contents, strict=True):
        for i, prefix in enumerate(prefixes):
            destination_pool.slots[destination * size + i] = prefix


def move_data(plan, pool, swap_pool):
    """Everything that moves before the model runs, in the order of the plan."""
    swap_pool.lose_old_contents()
    copy_blocks(pool, swap_pool, plan.swap_out)
    pool.lose_old_contents()
    copy_blocks(swap_pool, pool, plan.swap_in)
    copy_blocks(pool, pool, plan.copies)


def write(chunk, text, contents=None):
    """Write the K and V of a chunk's tokens, or something else in their place."""
    for position in range(chunk.start, chunk.start + chunk.num_tokens):
        [slot] = chunk.seq.block_table.slot_mapping(position, position + 1)
        chunk.seq.block_table.pool.slots[slot] = contents or text[: position + 2]  # text[0] is the salt


def assert_reads_its_own(seq, text, stop):
    """What attention would read for the first `stop` tokens of a sequence is the K and V of exactly these tokens."""
    table = seq.block_table
    for position, slot in enumerate(table.slot_mapping(0, stop)):
        assert table.pool.slots.get(slot) == text[: position + 2], (
            f"{seq} reads token {position} from slot {slot}, which should hold the K and V of the prefix "
            f"{text[: position + 2]}, but holds {table.pool.slots.get(slot)}"
        )


# ---- what the model says ---------------------------------------------------------------------------------------------


def luck(*what):
    """A number that anybody would take for a random one, but always the same for the same things."""
    return crc32(repr(what).encode())


def take_samples(group, texts, vocab_size):
    """Every sample gets a token; returns those that are complete. `texts`: sequence -> salt and tokens."""
    done = []
    for i, seq in enumerate(group.sequences):
        chance = luck(texts[seq], i)
        add_token(seq, texts, chance % vocab_size)
        if len(seq.token_ids) == group.max_num_tokens or chance // vocab_size % 16 == 0:
            done.append(seq)
    return done


def take_beams(group, texts, vocab_size):
    """Beams branch and die, as in BeamRequest.take; returns the dead ones, in the end all."""
    beams, text = list(group.sequences), texts[group.leader]
    chance = luck(text)
    is_over = len(group.leader.token_ids) + 1 == group.max_num_tokens or chance % 16 == 0
    num_children = 0 if is_over else 1 + chance // 16 % group.max_num_seqs
    parents = [beams[luck(text, i) % len(beams)] for i in range(num_children)]
    children = []
    for i, parent in enumerate(parents):
        is_last_child = parent not in parents[i + 1 :]  # it takes the place of its parent
        children.append(parent if is_last_child else parent.fork(f"{parent.seq_id}.{len(texts)}"))
        texts.setdefault(children[-1], texts[parent])
    for i, child in enumerate(children):
        add_token(child, texts, luck(text, i) // 8 % vocab_size)
    dead = [beam for beam in beams if beam not in parents]
    group.sequences = children + dead
    return dead


def add_token(seq: Sequence, texts, token):
    seq.token_ids.append(token)
    texts[seq] += (token,)
