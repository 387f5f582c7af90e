"""The memory manager: an operating system's paging in miniature, in plain Python.

BlockPool   the physical blocks: who is free, and how often each is referenced
BlockTable  one sequence's map from logical to physical blocks, with fork and copy-on-write
PrefixCache which blocks hold which text, so that equal beginnings are computed once
"""

from minipage.memory.block_pool import BlockPool
from minipage.memory.block_table import BlockCopy, BlockTable, blocks_needed
from minipage.memory.prefix_cache import Prefix, PrefixCache
from minipage.renamed import keep_old_names

__all__ = ["BlockCopy", "BlockPool", "BlockTable", "Prefix", "PrefixCache", "blocks_needed"]

keep_old_names(__name__)
