"""The allocators that paging replaced: each request lies in one piece, reserved before anybody knows how long it gets.

K and V of a request used to be one tensor, so all of its slots had to be neighbours, and its place had to be as large
as the request might become. Three ways to guess that, for a prompt of 4 tokens and 4 of 6 output tokens so far:

    reserve_max     p p p p g g g g - - x x x x x x x x x x x x x x x x x x x x x x    the model's longest sequence, 32
    reserve_pow2    p p p p g g g g - - x x # # # #                                    4 + 8: output rounded up
    reserve_oracle  p p p p g g g g - - # # # # # #                                    4 + 6: the truth, if only we knew

    p, g  token states: K and V of the prompt, and of what was generated
    -     reserved: this request will use them, and meanwhile nobody can
    x     internal waste: held by the request, never used
    #     external waste: held by nobody, but lying where nobody can use it

Places come from a buddy allocator, which deals in chunks of 1, 2, 4, 8, ... slots: it halves a larger chunk until it
fits, and joins the halves (buddies) when both are free again. But 12 slots take 16, and small chunks make no large one.

These are the baselines of the PagedAttention paper (arXiv 2309.06180, sections 3.1 and 6.1), which names them after
Orca (Yu et al., OSDI 2022). The buddy system is Knuth's, The Art of Computer Programming, volume 1, section 2.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from minipage.errors import BlockError, ConfigurationError, IntegrityError, OutOfBlocksError, require_positive
from minipage.memory.block_table import BlockTable


class BuddyAllocator:
    """`num_slots` slots, dealt out in chunks of a power of two. Both operations take time O(log num_slots).

    `num_slots` need not be a power of two itself: at first there is one free chunk for each binary digit of it, such as
    22 = 16 + 4 + 2. A chunk of 2**k slots always begins at a multiple of 2**k, so the first slots of two buddies differ
    in one bit.
    """

    def __init__(self, num_slots: int) -> None:
        require_positive(num_slots=num_slots)
        self.num_slots = num_slots = int(num_slots)
        # By k, the first slots of the free chunks of 2**k slots. (Dictionaries, because any entry can go in O(1).)
        self._free: list[dict[int, None]] = [{} for _ in range(num_slots.bit_length())]
        self._order: dict[int, int] = {}  # first slot of each chunk in use: its k
        start = 0
        for order in reversed(range(num_slots.bit_length())):
            if num_slots & (1 << order):
                self._free[order][start] = None
                start += 1 << order

    @property
    def num_free(self) -> int:
        """Free slots in chunks of any size: there may be no place for that many in a row."""
        return sum(len(chunks) << order for order, chunks in enumerate(self._free))

    def allocate(self, size: int) -> int:
        """Take `size` slots in a row and return the first. Raises OutOfBlocksError if no free chunk is large enough."""
        require_positive(size=size)
        wanted = next_power_of_two(size).bit_length() - 1
        order = next((k for k in range(wanted, len(self._free)) if self._free[k]), None)
        if order is None:
            raise OutOfBlocksError(
                f"{size} slots in a row wanted, for which no free chunk is large enough: {self.num_free} of "
                f"{self.num_slots} slots are free, but not {1 << wanted} of them together."
            )
        start, _ = self._free[order].popitem()
        while order > wanted:
            order -= 1
            self._free[order][start + (1 << order)] = None  # the upper half stays free
        self._order[start] = order
        return start

    def free(self, start: int) -> None:
        """Give back the chunk that begins at slot `start`, and join it with its buddy as long as that is free too."""
        if start not in self._order:
            raise BlockError(f"no chunk in use begins at slot {start}: it was freed already, or never allocated.")
        order = self._order.pop(start)
        while (buddy := start ^ (1 << order)) in self._free[order]:
            del self._free[order][buddy]
            start = min(start, buddy)
            order += 1
        self._free[order][start] = None

    def check_integrity(self, starts: Iterable[int]) -> None:
        """Check the allocator against the first slots of all the chunks that anybody holds.

        Raises IntegrityError with the first thing that is wrong: holders and chunks in use disagree, a slot is in no
        chunk or in two, or chunks were joined that are no buddies, or not joined that are.
        """
        holders = Counter(starts)
        for start in self._order.keys() | holders.keys():
            if holders[start] != (start in self._order):
                state = "in use" if start in self._order else "not in use"
                raise IntegrityError(f"the chunk at slot {start} is {state}, but {holders[start]} requests hold it.")
        free = [(start, order) for order, chunks in enumerate(self._free) for start in chunks]
        end = 0
        for start, order in [*sorted([*free, *self._order.items()]), (self.num_slots, 0)]:
            if start != end:
                raise IntegrityError(f"slot {min(start, end)} belongs to {'two chunks' if start < end else 'none'}.")
            end = start + (1 << order)
        if wrong := [start for start, k in free if start % (1 << k) or start ^ (1 << k) in self._free[k]]:
            raise IntegrityError(f"free chunks at slots {wrong} begin at no multiple of their size, or are buddies.")


class ContiguousTable:
    """The place of one request: `num_reserved` slots in a row, taken with the first token. Compare BlockTable."""

    def __init__(self, allocator: BuddyAllocator, num_reserved: int) -> None:
        require_positive(num_reserved=num_reserved)
        self.allocator = allocator
        self.num_reserved = num_reserved
        self.num_tokens = 0
        self.start: int | None = None  # the first slot; None while there is no token

    def append(self, num_tokens: int) -> None:
        """Give slots to `num_tokens` more tokens, all of them or none.

        Raises OutOfBlocksError if these are the first and no free chunk is large enough, or if they are more than was
        reserved; then nothing has changed.
        """
        if num_tokens < 0:
            raise ConfigurationError(f"cannot append {num_tokens} tokens.")
        if self.num_tokens + num_tokens > self.num_reserved:
            raise OutOfBlocksError(
                f"{self.num_tokens + num_tokens} tokens do not fit into the {self.num_reserved} slots reserved for "
                "them. What lies in one piece cannot grow."
            )
        if self.start is None and num_tokens > 0:
            self.start = self.allocator.allocate(self.num_reserved)
        self.num_tokens += num_tokens

    def slot_mapping(self, start: int, stop: int) -> list[int]:
        """The slots of tokens `start` to `stop - 1`: simply the following ones."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise ConfigurationError(f"tokens {start} to {stop} wanted, but only {self.num_tokens} have slots.")
        first = self.start or 0
        return list(range(first + start, first + stop))

    def free(self) -> None:
        """Give the slots back."""
        if self.start is not None:
            self.allocator.free(self.start)
        self.num_tokens, self.start = 0, None


ReservationRule = Callable[[int, int, int], int]  # (prompt tokens, output tokens, most of both) -> slots to reserve


def reserve_max(num_prompt_tokens: int, num_output_tokens: int, max_model_len: int) -> int:
    """The longest sequence that the model could produce, whatever the request."""
    return max_model_len


def reserve_pow2(num_prompt_tokens: int, num_output_tokens: int, max_model_len: int) -> int:
    """Somebody guesses the output's length and errs by less than a factor of two: 25 becomes 32."""
    return min(num_prompt_tokens + next_power_of_two(num_output_tokens), max_model_len)


def reserve_oracle(num_prompt_tokens: int, num_output_tokens: int, max_model_len: int) -> int:
    """What the request will really use. Impossible to know, so this is the best that reserving could ever do."""
    return num_prompt_tokens + num_output_tokens


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is not below `n`, for `n` of at least 1."""
    return 1 << int(n - 1).bit_length()


class SlotUsage(NamedTuple):
    """What a memory's slots are used for. The four add up to all of it."""

    token_states: float  # hold the K and V of a token
    reserved: float  # free now, but the request that holds them will use them
    internal: float  # held by a request that will never use them
    external: float  # held by nobody: free, or lost to the rounding of chunks


def slot_usage(num_slots: int, tables: Iterable[tuple[BlockTable | ContiguousTable, int]]) -> SlotUsage:
    """Account for every slot of a memory, paged or not.

    `tables` are all its tables, each with the length that its request will have in the end; they must share no blocks.
    """
    token_states = reserved = held = 0
    for table, final_len in tables:
        if final_len < table.num_tokens:
            raise ConfigurationError(f"a request of {final_len} tokens cannot have {table.num_tokens} of them stored.")
        room = slots_held(table)
        token_states += table.num_tokens
        reserved += min(final_len, room) - table.num_tokens
        held += room
    return SlotUsage(token_states, reserved, held - token_states - reserved, num_slots - held)


def slots_held(table: BlockTable | ContiguousTable) -> int:
    """The slots that nobody else can use: those of its blocks, or those reserved."""
    if isinstance(table, BlockTable):
        return len(table) * table.pool.block_size
    return 0 if table.start is None else table.num_reserved
