"""Wrong solutions, as changes to the right ones in alternatives/: mistakes that people make.

The first of a pair is text that the alternative solution has (exactly once), the second what it is changed to. Where real
engines had the bug, the issue is named. `words` is a regular expression that the learner's message has to match.
"""

from typing import NamedTuple


class Mistake(NamedTuple):
    exercise: str
    old: str
    new: str
    words: str


M = Mistake
BLOCK_POOL = [
    M("3.1", "[*range(num_blocks)]", "[*range(1, num_blocks + 1)]", "all free: 0, 1, 2"),
    M("3.1", "if block not in range(self.num_blocks)", "if block >= self.num_blocks", "would hide a bug"),
    M("3.1", "lambda self: tuple(self.unused)", "lambda self: self.unused", "free_queue is a tuple"),
    M("3.1", "lambda self: len(self.unused)", "lambda self: self.num_blocks - 1", "num_free counts the blocks in the free"),
    M("3.2", "block = self.unused.pop(0)", "block = self.unused.pop()", "front of the free queue"),
    M("3.2", "block = self.unused.pop(0)", "block = self.unused[0]", "in use leaves the free queue"),
    M("3.2", "        self.holders[block] = 1\n        self.on_evict", "        self.on_evict", "exactly one reference"),
    M("3.2", "self.on_evict(block)", "pass", "on_evict has to be called"),
    M("3.2", 'raise OutOfBlocksError("none is free")', "return None", "has to raise OutOfBlocksError"),
    M("3.3", "left = self.holders.pop(block) - 1", "left = self.holders.pop(block)", "drops one reference"),
    M("3.3", "self.unused.append(block)", "self.unused.insert(0, block)", "end of the free queue"),
    M("3.3", "self.unused.append(block)", "pass", "end of the free queue"),
    M("3.3", "if not self.ref_count(block):", "if self.ref_count(block) < 0:", "free already cannot be freed"),  # MinivLLM #84
    M("3.4", "self.holders[block] += 1", "self.holders[block] += 2", "adds one reference"),
    M("3.4", "except KeyError:", "except ZeroDivisionError:", "cannot be shared: raise BlockError"),
    M("3.4", "left = self.holders.pop(block) - 1", "left = 0 * self.holders.pop(block)", "drops one reference"),
    M("3.5", "if len(self.unused) < count:", "if count > 99:", "left everything as it was|must leave everything"),
    M("3.5", "[self.allocate() for _ in range(count)]", "[self.unused[i] for i in range(count)]", "exactly one reference"),
    M("3.5", "[self.allocate() for _ in range(count)]", "(self.allocate() for _ in range(count))", "in order, as a list"),
    M("3.5", "if count < 0:", "if 0:", "Fewer than none: ConfigurationError"),
    M("3.6", "self.unused.remove(block)", "self.unused.pop(0)", "from wherever it is|raise BlockError"),
    M("3.6", "        self.holders[block] = 1\n\n    def check", "        self.holders[block] = 1\n        self.on_evict(block)\n\n"
      "    def check", "make the prefix cache forget it"),
    M("3.6", "            self.unused.remove(block)\n", "            self.unused.index(block)\n", "takes this block out of the queue"),
    M("3.6", "        self.holders[block] = 1\n\n    def check", "\n    def check", "has one reference"),
]  # fmt: skip
BLOCK_TABLE = [
    M("4.1", "full + bool(rest)", "full + 1", "Every started block counts"),
    M("4.1", "full + bool(rest)", "full", "Every started block counts"),
    M("4.1", "full + bool(rest)", "full + (rest == 1)", "Every started block counts"),
    # MinivLLM #75 and #85: `len % block_size == 1` simplified to `== 0`
    M("4.2", "if self.num_tokens == len(self.blocks) * self.pool.block_size:",
      "if (self.num_tokens + 1) % self.pool.block_size == 0:", "when the last one is full and one more"),
    # nano-vllm: block_size 1
    M("4.2", "if self.num_tokens == len(self.blocks) * self.pool.block_size:",
      "if (self.num_tokens + 1) % self.pool.block_size == 1:", "when the last one is full and one more"),
    M("4.2", "if self.blocks_to_allocate(num_tokens) > self.pool.num_free:", "if 0:", "An append that fails changes nothing"),
    M("4.2", "            self.num_tokens += 1\n        return []", "            self.num_tokens += 1\n", "nothing is copied: return"),
    M("4.2", "if num_tokens < 0:", "if 0:", "raise ConfigurationError"),
    M("4.2", "self.blocks.append(self.pool.allocate())", "self.blocks.append(self.pool.allocate() and self.pool.allocate())",
      "it would leak|each once|OutOfBlocks"),
    M("4.3", "block * size + offset", "block * size + offset + 1", r"place \* \d+ \+ offset"),
    M("4.3", "for block in self.blocks for offset", "for block in range(len(self.blocks)) for offset", "place in the pool"),
    M("4.3", "stop > self.num_tokens", "stop > size", "have a slot|UnboundLocalError"),
    M("4.3", "stop > self.num_tokens", "stop > len(self.blocks) * self.pool.block_size", "the last block may have room"),
    M("4.4", "self.blocks[::-1]:\n            self.pool", "self.blocks:\n            self.pool", "the last to be reused"),
    M("4.4", "self.blocks[::-1]:\n            self.pool", "self.blocks[:0:-1]:\n            self.pool", "a leak"),
    M("4.4", "self.blocks, self.num_tokens, self.block_hashes = [], 0, []", "pass", "can be used again"),
]  # fmt: skip
ATTENTION = [
    M("5.1", "range(context_len)]", "range(-(-context_len // size) * size)]", "cut off the slots"),
    M("5.1", "int(block_table[i // size]) * size", "(i // size) * size", "Token i is in block|NaN came out"),
    M("5.1", "i % size for", "0 for", "at offset"),
    M("5.2", "h // (len(q) // k.shape[1])", "h % k.shape[1]", "share K and V in runs"),
    M("5.2", "float(q @ key) * scale", "float(q @ key)", r"q · k \* scale"),
    M("5.2", "return acc / total", "return acc", "weighted mean"),
    M("5.2", "top, total, acc = -math.inf, 0.0, 0.0", "top, total, acc = 0.0, 0.0, 0.0", "scores = q|NaN|ZeroDivision|overflow|cannot be"),
    # nano-vllm #213: the length of the chunk instead of the context
    M("5.3", "seen = context_lens[s] - back", "seen = len(mine) - back", "all that is in the cache and not only|block_tables|Zero"),
    M("5.3", "seen = context_lens[s] - back", "seen = context_lens[s]", "sees itself and those before it"),
    M("5.3", "seen = context_lens[s] - back", "seen = context_lens[s] - back - 1", "sees itself|Zero|block_tables"),
    M("5.3", "block_tables[s], context_lens[s])\n        vs", "block_tables[0], context_lens[s])\n        vs", "in block_tables|NaN|no block|IndexError"),
    M("5.4", "total, acc, top = total * shrink, acc * shrink, score", "total, acc, top = total * shrink, acc, score", "has to shrink"),
    M("5.4", "total, acc, top = total * shrink, acc * shrink, score", "total, acc, top = total, acc, score", "has to shrink"),
    M("5.4", "        for key, value in zip(k, v):", "        top = -math.inf\n        for key, value in zip(k, v):", "has to shrink"),
]  # fmt: skip
COPY_ON_WRITE = [
    M("7.1", "[self.pool.share(block) for block in twin]", "", "needs a second reference"),
    M("7.1", "twin.blocks, twin.block_hashes = self.blocks[:], self.block_hashes[:]", "twin.block_hashes = self.block_hashes[:]", "one and the same list of blocks"),
    M("7.1", "twin.blocks, twin.block_hashes = self.blocks[:], self.block_hashes[:]", "twin.blocks = self.blocks[:]", "same list of block_hashes"),
    M("7.1", "return twin", "twin.num_tokens = 0\n        return twin", "all of the parent's tokens|has all of"),
    M("7.2", "if is_part_full and", "if self.blocks and", "begins a block of its own"),
    M("7.2", "self.pool.ref_count(self.blocks[-1]) != 1", "True", "Nobody else holds"),
    M("7.2", "is_part_full and self", "False and self", "another table holds it too"),
    M("7.3", "1 if num_tokens and self", "1 if self", "writes nothing"),
    M("7.3", "copies + super()", "super()", "one to copy the shared tail into"),
    M("7.3", "copies = 1 if", "copies = 2 if", "one to copy the shared tail into"),
    # a "fork" that never copies: writers overwrite each other's tail
    M("7.4", "orders = self.make_private() if num_tokens else []", "orders = []", "has to be copied before it is written"),
    M("7.4", "        self.pool.free(tail)\n", "", "gives its own"),
    M("7.4", "return [BlockCopy(source=tail, destination=self.blocks[-1])]", "return []", "has to be copied"),
    M("7.4", "source=tail, destination=self.blocks[-1]", "source=self.blocks[-1], destination=tail", "has to be copied"),
    M("7.4", "if self.blocks_to_allocate(num_tokens) > self.pool.num_free:", "if 0:", "changes nothing at all"),
    M("7.4", "if num_tokens else []", "", "Nothing has to be copied|OutOfBlocks"),
]  # fmt: skip
PREFIX_CACHE = [
    M("8.1", "parent, *token_ids", "parent, sum(token_ids)", "a hash that adds them up"),  # Megatron-LM #4158
    M("8.1", "self.nonce, parent, *token_ids", "self.nonce, *token_ids", "parent's hash belongs in it"),
    M("8.1", "repr((self.nonce, parent, *token_ids))", "repr((self.nonce, parent, token_ids))", "always, and whether they come"),
    M("8.1", "repr((self.nonce, parent, *token_ids))", "repr((parent, *token_ids, 'no secret at all'))", "anybody can work out hashes"),  # vLLM #12621
    M("8.2", "[done : table.num_tokens // size]", "[done:]", "Only full blocks are|the root hash, and a hash"),
    M("8.2", "done = len(table.block_hashes) - 1", "done = 0", "Each once"),
    M("8.2", "self.block_hash(table.block_hashes[-1], token_ids", "self.block_hash(table.block_hashes[0], token_ids", "follows the hash before it"),
    M("8.3", "while len(rest) > size:", "while len(rest) >= size:", "no token is left to compute"),  # nano-vllm #114, #144
    M("8.3", "[self.root_hash(salt)], self.pool", "[self.root_hash('salt')], self.pool", "under the same salt|root hash of this salt"),
    M("8.3", "rest = rest[size:]", "rest = rest[size:]\n            self.hold(blocks[-1])", "Looking changes nothing"),
    M("8.3", "            if key not in self.table:\n                return blocks, keys\n            blocks.append(self.table[key])",
      "            if key in self.table:\n                blocks.append(self.table[key])", "As far as the text is the same|The hashes are"),
    M("8.4", "take = self.pool.share if self.pool.ref_count(block) else self.pool.revive", "take = self.pool.share", "BlockError"),
    M("8.4", "        for block in blocks:\n            self.hold(block)\n", "", "have to leave the free queue|one reference more"),
    M("8.4", "table.blocks, table.block_hashes = [*blocks], [*keys]", "table.blocks, table.block_hashes = [*blocks], []", "published a second time"),
    M("8.4", "[*blocks], [*keys]", "blocks, keys", "lists of its own"),
    M("8.5", "self.table = {key: known for key, known in self.table.items() if known != block}", "pass", "nano-vllm #163"),
    M("8.5", "self.table, self.nonce = {}, secrets.token_hex(8)", "self.table = {}", "rest on old weights"),
    M("8.5", "self.table, self.nonce = {}, secrets.token_hex(8)", "self.nonce = secrets.token_hex(8)", "After a reset nothing"),
    M("8.5", "if known != block}", "if known == block}", "nothing is lost"),
    M("8.6", "if kept != block:", "if False:", "nothing is stored twice"),  # nano-vllm #219
    M("8.6", "                self.pool.free(block)\n", "", "were given back"),
    M("8.6", "                self.hold(kept)\n", "", "two holders|freed twice|reference count"),
    M("8.6", "kept = self.table.setdefault(table.block_hashes[-1], block)\n", "kept = self.table.setdefault(table.block_hashes[-1], block)\n"
      "            self.table[table.block_hashes[-1]] = block\n", "which block each of them finds"),
]  # fmt: skip
SCHEDULER = [
    M("6.1", "max(0, min(mine, budget - earlier))", "min(mine, budget - earlier)", "not below 0"),
    M("6.1", "max(0, min(mine, budget - earlier))", "min(mine, budget)", "the budget shrinks with every token"),
    M("6.1", "max(0, min(mine, budget - earlier))", "mine if mine + earlier <= budget else 0", "or what is left"),
    # vLLM tests: cached blocks in the free queue not counted as needed
    M("6.2", "if pool.ref_count(block) > 0]", "]", "counted as a gift"),
    M("6.2", "group.max_blocks(size) > pool.num_blocks", "group.max_blocks(size) > pool.num_free", "LATER|in use|free. prompt|has 8|starts?|beginning|leave|blocks of"),
    M("6.2", "            return Admission.NEVER", "            return Admission.LATER", "the whole pool has 8"),  # nano-vllm #274
    M("6.2", "must_stay = self.watermark_blocks if self.running else 0", "must_stay = 0", "a newcomer has to leave them free"),
    M("6.2", "must_stay = self.watermark_blocks if self.running else 0", "must_stay = self.watermark_blocks", "nobody can run dry"),
    M("6.2", "group.max_num_seqs > self._seats_left()", "self._seats_left() == 0", "joins with all its sequences"),
    M("6.2", "group.blocks_to_start(size)", "group.max_blocks(size)", "may start when|needs 1 free|have to leave|leave them"),
    M("6.3", "                return\n            self._start", "                continue\n            self._start", "let in too early"),
    M("6.3", "            budget -= sum(chunk.num_tokens for chunk in chunks)\n", "", "no more than max_num_batched_tokens|let in too early"),
    M("6.3", "for group in list(self.waiting):", "for group in list(self.waiting)[:1]:", "although there are tokens, seats and blocks"),
    M("6.3", "for group in list(self.waiting):", "for group in list(self.waiting)[::-1]:", "let in too early|let in|although there"),
    M("6.3", "self.admission(group, found[0]) != Admission.NOW", "self.admission(group, found[0]) == Admission.NEVER", "let in too early|OutOfBlocks"),
    # nano-vllm: prompts first, and whoever runs starves
    M("6.4", "        i = 0\n", "        self._admit(plan, left)\n        left -= sum(chunk.num_tokens for chunk in plan.chunks)\n        i = 0\n", "would starve whoever runs|let in too early"),
    M("6.4", "if self.swapped == []:", "if True:", "while anybody is swapped out"),
    M("6.4", "left -= self._give_slots(chunks, plan)", "self._give_slots(chunks, plan)", "no more than max_num_batched_tokens"),
    M("6.4", "        left = self._swap_in(plan, left)\n", "", "as soon as all its blocks"),
]  # fmt: skip
PREEMPTION = [
    M("9.1", "*_, victim = self.running", "victim, *_ = self.running", "The last in the running list gives way first"),
    M("9.1", "while is_short():", "if is_short():", "only until there is room|OutOfBlocks|cannot be used"),
    M("9.1", "while is_short():", "while is_short() or len(self.running) > 2:", "only until there is room"),
    M("9.1", "                return False\n        return True", "                break\n        return True", "OutOfBlocks|Each chunk|cannot be used"),
    # nano-vllm #103, a mini-vllm tutorial: the tokens generated so far are dropped
    M("9.2", "        group.restart(self.block_pool)\n", "        for seq in group.sequences:\n            del seq.token_ids[seq.num_prompt_tokens :]\n        group.restart(self.block_pool)\n", "keeps every token"),
    M("9.2", "        group.restart(self.block_pool)\n        self._enqueue(group, GroupStatus.WAITING)", "        self._enqueue(group, GroupStatus.WAITING)", "gives its blocks back|gives way|cannot be used"),
    M("9.2", "        group.num_preemptions += 1\n", "", "preempt.. counts"),
    M("9.2", "        plan.preempted.append(group)\n", "", "plan.preempted.append"),
    M("9.3", "return group.num_blocks <= self.swap_pool.num_free", "return True", "room|OutOfBlocks|blocks wanted"),
    M("9.3", 'if self.preemption == "auto" and len(group.sequences) == 1:', "if False:", "if that is wanted"),
    M("9.3", "        if self.can_save(group):", "        if False:", "if that is wanted"),
    # another engine: swap copied the data but never freed the block
    M("9.3", "plan.swap_out[len(plan.swap_out) :] = group.move_to(self.swap_pool)",
      "[self.block_pool.share(b) for s in group.sequences for b in s.block_table]\n            plan.swap_out.extend(group.move_to(self.swap_pool))", "gives its blocks back|gives way"),
    # vLLM #546: the scheduler stops for good when swap space is used up
    M("9.4", "needed > self.block_pool.num_free:\n                break", "True:\n                break", "comes back as soon as"),
    M("9.4", "needed = group.num_blocks + blocks_for(chunks)", "needed = group.num_blocks", "not earlier|OutOfBlocks|comes back"),
    M("9.4", "            plan.swap_in.extend(group.move_to(self.block_pool))\n", "            group.move_to(self.block_pool)\n", "nobody copies K and V"),
    M("9.4", "budget -= self._give_slots(chunks, plan)", "self._give_slots(chunks, plan)", "max_num_batched_tokens|let in too early"),
]  # fmt: skip
WHY_PAGING = [
    M("1.1", "float(1 - Fraction(sum(lengths), max_len * len(lengths)))", "sum(lengths) / (max_len * len(lengths))", "share that is used"),
    M("1.1", "    if not lengths:\n        return 0.0\n", "", "not a division by 0|ZeroDivisionError"),
    M("1.1", "max_len * len(lengths)", "max_len", "share that is wasted is"),
    M("1.2", "-length % block_size for", "block_size - length % block_size for", "slots are taken"),
    M("1.2", "-length % block_size for", "length % block_size for", "slots are taken"),
    M("1.2", "sum(holes) / slots if slots else 0.0", "sum(holes) / slots", "not a division by 0|ZeroDivisionError"),
    M("1.3", "total <= num_slots for", "total < num_slots for", "exactly full is still a fit"),
    M("1.3", "in accumulate(needed)", "in accumulate(sorted(needed))", "nobody behind it may overtake"),
    M("1.3", "total <= num_slots for total in accumulate(needed)", "total <= num_slots for total in needed", "from what is left"),
]  # fmt: skip
GPT_AND_CACHE = [
    M("2.1", "seen = len(k) - len(q) + row + 1", "seen = row + 1", "what is before it"),
    M("2.1", "seen = len(k) - len(q) + row + 1", "seen = len(k)", "nothing after it"),
    M("2.1", "seen = len(k) - len(q) + row + 1", "seen = len(k) - len(q) + row", "sees tokens 0 to|ValueError"),
    M("2.1", " * q.shape[-1] ** -0.5", "", "sqrt"),
    M("2.1", "np.exp(scores - scores.max())", "np.exp(scores)", "Take the highest score off"),
    M("2.2", "        self.kept = {}", "        self.kept = KEPT", "keep K and V in self"),
    M("2.2", "self.kept.setdefault(layer, ([], []))", "self.kept.setdefault(0, ([], []))", "K and V of this layer so far"),
    M("2.2", "self.kept.setdefault(layer, ([], []))", "([], [])", "K and V of this layer so far"),
    M("2.2", "        keys.extend(k)\n", "        keys[:0] = k\n", "in order"),
    # nano-vllm #67: decode positions off by one
    M("2.3", "position + np.arange(len(new))", "position + np.arange(len(new)) + (position > 0)", "nano-vllm #67"),
    M("2.3", "        out += new\n    return out", "        out += new\n    return [*prompt, *out]", "the prompt does not"),
    M("2.3", "        out += new\n", "        out += new\n        new, position = [*prompt, *out], 0\n        attend = CachedAttention()\n", "computed once"),
    M("2.3", "for _ in range(num_tokens):", "for _ in range(num_tokens + 1):", "num_tokens new ones"),
    M("2.3", "hidden[[-1]]", "hidden[[0]]", "largest logit of the last"),
]  # fmt: skip
QUANTIZED = [
    M("10.1", "np.round(row * (127 / top))", "(row * (127 / top)).astype(np.int8)", "cuts towards 0"),
    M("10.1", "max(abs(float(row.min())), abs(float(row.max())))", "float(row.max())", "largest magnitude"),
    M("10.1", "max(abs(float(row.min())), abs(float(row.max())))", "float(np.abs(rows).max())", "each row has its own"),
    M("10.1", "        if top:\n            scales[i] = top / 127\n            codes[i]", "        if True:\n            scales[i] = top / 127\n            codes[i]", "ZeroDivisionError|largest magnitude"),
    M("10.1", "top / 127", "top / 128", "127"),
    M("10.2", "code * np.float32(scale)", "code * np.float32(scales[0])", "its own scale"),
    M("10.2", "code * np.float32(scale)", "code / np.float32(scale)", "times its own scale"),
    M("10.2", "code * np.float32(scale)", "code * np.int8(scale * 4) / 4", "Multiplied as int8|its own scale"),
    M("10.3", "(numbers + 4 * scales) if", "numbers if", "4 of its scale"),
    M("10.3", "2 * (numbers + 4 * scales) if quantized else 8 * numbers", "(numbers + 4 * scales) if quantized else 4 * numbers", "K and V"),
    M("10.3", "2 * (numbers + 4 * scales)", "2 * (numbers + 4)", "4 of its scale"),
]  # fmt: skip
KERNELS = [
    M("11.1", "    if copy >= sources.shape[0]:\n        return\n", "", "have to do nothing"),
    M("11.1", "    if copy >= sources.shape[0]:", "    if copy > sources.shape[0]:", "have to do nothing"),
    M("11.1", "divmod(thread_number(), cache.shape[1])", "divmod(cuda.threadIdx.x, cache.shape[1])", "both write|Thread i copies"),
    M("11.1", "    cache[destinations[copy], number] = value", "    cache[sources[copy], number] = value", "Thread i copies"),
    M("11.1", "cache[destinations[copy], number] = value", "cache[destinations[copy], 0] = value", "both write"),
    M("11.2", "    if s >= q.shape[0]:\n        return\n", "", "have to do nothing"),
    M("11.2", "kv = h // (q.shape[1] // k_cache.shape[2])", "kv = h % k_cache.shape[2]", r"head h // \(H // KH\)"),
    M("11.2", "        out[s, h, d] = 0.0\n", "        pass\n", "rubbish at first"),
    M("11.2", "block = block_tables[s, t // size]", "block = t // size", "block_tables|NaN"),
    M("11.2", "* scale - top)", "* scale)", "NaN came out"),
    M("11.2", "out[s, h, d] = out[s, h, d] / total", "pass", "divides the result"),
    M("11.3", "8 * row + (piece + row) % 8", "8 * row + piece", "Piece 0 of rows 0, 1, 2, 3, 4, 5, 6 and 7 is in column 0, .* banks, 0 to 3: .* 8 turns"),
    M("11.3", "8 * row + (piece + row) % 8", "(piece + row) % 8", "Row 1 has places 8 to 15"),
    M("11.3", "8 * row + (piece + row) % 8", "8 * row + piece + row", "Row 1 has places 8 to 15"),
    M("11.3", "8 * row + (piece + row) % 8", "8 * row + (piece | row) % 8", "Pieces 0 and 1 of row 1 are both in place 9"),
    M("11.3", "(piece + row) % 8", "(piece + row // 2) % 8", "Piece 0 of rows 0 and 1 is in column 0, .* 2 turns"),
    M("11.3", "(piece + row) % 8", "row % 8", "Pieces 0 and 1 of row 0 are both in place 0"),
    M("11.3", "(piece + row) % 8", "(piece + row) % 7", "Pieces 0 and 7 of row 0 are both in place 0"),
    M("11.3", "return 8", "8", "is there a `return`"),
]  # fmt: skip
PARALLEL = [
    M("12.1", "np.split(weight, size, axis=1)[rank]", "np.split(weight, size, axis=0)[rank] if len(weight) % size == 0 else weight", "place for every number|columns"),
    M("12.1", "np.split(bias, size)[rank]\n\n\ndef split_rows", "bias\n\n\ndef split_rows", "place for every number"),
    M("12.1", "axis=1)[rank], np.split(bias, size)[rank]\n\n\ndef split_rows", "axis=1)[0], np.split(bias, size)[rank]\n\n\ndef split_rows", "Rank 1 has the columns"),
    M("12.2", "bias * (rank == 0)", "bias", "only rank 0 has it"),
    M("12.2", "bias * (rank == 0)", "bias * 0", "only rank 0 has it"),
    M("12.2", "bias * (rank == 0)", "bias / size", "only rank 0 has it"),
    M("12.2", "np.split(weight, size)[rank], bias", "np.split(weight, size)[-1 - rank], bias", "has the rows"),
    M("12.3", "    return np.hstack(weights), np.hstack(biases)", "    return split_columns(weight, bias, rank, size)", "One slice through all three"),
    M("12.3", "np.hstack(biases)", "np.split(bias, size)[rank]", "One slice through all three"),
    M("12.3", "np.hstack(weights)", "np.hstack(weights[::-1])", "q of all heads"),
    M("12.4", "range(len(parts) - 1)", "range(len(parts))", "each once"),
    M("12.4", "range(len(parts) - 1)", "range(len(parts) - 2)", "sum of all parts"),
    M("12.4", "    return sums", "    return [sums[0]] * len(sums)", "Give each a copy"),
    M("12.4", "    return sums", "    return sums[:1]", "Every rank gets the sum"),
]  # fmt: skip
MEASURING = [
    M("13.1", "np.percentile(values, percent)", "np.percentile(values, percent, method='nearest')", "of the way is place"),
    M("13.1", "np.percentile(values, percent)", "values[int((len(values) - 1) * percent / 100)]", "Sorted"),
    M("13.1", "    if len(values) == 0:", "    values.sort()\n    if len(values) == 0:", "changes somebody else's list"),
    M("13.1", 'raise ValueError("nothing was measured")', "return 0.0", "raise ValueError"),
    M("13.2", "(max(ends) - min(arrivals))", "sum(e - a for a, e in zip(arrivals, ends))", "their times are not added"),
    M("13.2", "(max(ends) - min(arrivals))", "max(ends)", "between the first arrival"),
    M("13.2", "sum(tokens) / (max", "len(tokens) / (max", "tokens went out"),
    M("13.3", "(end - arrival) / tokens for arrival, _, end,", "(end - begin) / tokens for arrival, begin, end,", "waiting counts"),
    M("13.3", "return fmean((end - arrival) / tokens for arrival, _, end, tokens in served)", "return sum(r[2] - r[0] for r in served) / sum(r[3] for r in served)", "a short one counts as much"),
    M("13.3", "(end - arrival) / tokens for", "(end - arrival) for", "its own seconds a token"),
    M("13.4", "ceil(num_tokens / block_size)", "num_tokens / block_size", "the last one part empty"),
    M("13.4", "return blocks_there // blocks_each", "return memory // bytes_per_token // num_tokens", "whole blocks"),
    M("13.4", "return blocks_there // blocks_each", "return blocks_there / blocks_each", "Requests count whole"),
    M("13.5", "corners[i] + (place - begin) / (counts[i] - begin) * (corners[i + 1] - corners[i])", "corners[i + 1]", "lies between these bounds"),
    M("13.5", "begin = counts[i - 1] if i else 0", "begin = 0", "lies between these bounds"),
    M("13.5", "counts = np.array(buckets, float).T", "counts = np.array(buckets, float).T\n    counts = np.cumsum(counts)", "lies between these bounds"),
    M("13.5", "return bounds[i - 1]", "return bounds[i]", "the last bucket"),
    M("13.5", "if counts[-1] == 0:", "if 0:", "raise ValueError"),
    M("13.6", "after[name + end] - before[name + end] for", "after[name + end] for", "since the server's start"),
    M("13.6", "time / number if number else 0", "time / number", "ZeroDivisionError"),
    M("13.6", "time / number if number else 0, time / seconds", "time / number if number else 0, number / seconds", "Little's law"),
    M("13.7", "if load - least <= self.most_ahead", "if True", "Overloaded, with more than"),
    M("13.7", "load - least <= self", "load - least < self", "Nobody has more than"),
    M("13.7", "self.known(server, tokens[self.size :], block_hash)", "self.known(server, tokens[self.size :], parent)", "Of the blocks at the prompt's beginning"),
    M("13.7", "del self.blocks[server][block_hash]", "pass", "Of the blocks at the prompt's beginning"),
    M("13.7", "(-self.known(server, token_ids), load, server)", "(-self.known(server, token_ids), server, server)", "Of the blocks at the prompt's beginning"),
    M("13.6", "time / number if number else 0", "time / after[name + '_count'] if number else 0", "took .* s together"),
]  # fmt: skip
OWN_MODEL = [
    M("14.1", "np.exp(1j * np.outer(positions, frequencies))", "np.exp(-1j * np.outer(positions, frequencies))", "turn the wrong way"),
    M("14.1", "np.outer(positions, frequencies)", "np.outer(positions + 1, frequencies)", "one too high"),
    M("14.1", "np.outer(positions, frequencies)", "np.outer(np.arange(len(x)), frequencies)", "The rows were counted"),
    # Llama's original order, which Hugging Face's checkpoints do not have
    M("14.1", "points = x[..., : size // 2] + 1j * x[..., size // 2 :]\n    points = points * turns[:, None, :]\n"
      "    return np.concatenate([points.real, points.imag], axis=2)", "points = x[..., ::2] + 1j * x[..., 1::2]\n"
      "    points = points * turns[:, None, :]\n    return np.stack([points.real, points.imag], axis=3).reshape(x.shape)", "Neighbours were paired"),
    M("14.1", "theta ** (-2 * i / size)", "theta ** (-i / size)", r"theta \*\* \(-2 \* i / D\)"),
    M("14.1", "np.exp(1j * np.outer(positions, frequencies))", "np.exp(1j * np.outer(positions % 16, frequencies))", "Pair i turns by position"),
    M("14.2", "head * num_kv_heads // num_heads", "head % num_kv_heads", "one after the other, share"),
    M("14.2", "head * num_kv_heads // num_heads", "head // num_kv_heads", "one after the other, share"),
    M("14.2", "v_cache[block, offset, own]", "v_cache[block, offset, h % num_kv_heads]", "and of V too"),
    M("14.2", "range(context_len)]", "range(-(-context_len // block_size) * block_size)]", "NaN came out"),
    M("14.2", " / math.sqrt(q.shape[1])", "", r"sqrt\(D\)"),
    M("14.3", "return 2 * config", "return config", r"K and V \(2\)"),
    M("14.3", "shared * row", "heads * row", r"with \d heads of"),
    M("14.3", "size + 4", "size", "bytes of a scale"),
    M("14.3", 'config.get("head_dim") or config["hidden_size"] // heads', 'config["hidden_size"] // heads', "heads of"),
    M("14.3", ' and not config.get("new_decoder_architecture", False)', "", "heads of"),
    M("14.3", "        shared = 1\n", "        pass\n", "with 1 heads of"),
    M("14.4", '"Falcon-7B": (1, 64, 8192, 65536)', '"Falcon-7B": (71, 64, 581632, 923)', "all of them share one"),
    M("14.4", "(40, 128, 819200, 655)", "(40, 128, 819200, 655.36)", "Whole blocks|whole number"),
    M("14.4", "(4, 128, 57344, 9362)", "(4, 128, 28672, 18724)", r"K and V \(2\)"),
    M("14.4", '"Qwen2.5-7B"', '"Qwen"', "under its name"),
    M("14.5", "np.exp(1j * angle)", "np.exp(-1j * angle)", "went the other way"),
    M("14.5", "np.exp(1j * angle)", "np.exp(1j * np.arange(by, by + len(k))[:, None, None] * angle / (by or 1))", "a second time"),
    M("14.5", "angle = by * theta", "angle = abs(by) * theta", "went the other way"),
    M("14.5", "    half = k.shape[-1] // 2\n    angle", "    if by == 0:\n        return k\n    half = k.shape[-1] // 2\n    angle", "Make a new array"),
]  # fmt: skip
PAPER = [
    M("15.1", "return num_parameters * bytes_per_parameter + int", "return len(context_lens) * num_parameters * bytes_per_parameter + int", "read once for all"),
    M("15.1", " + int(tokens) * kv_bytes_per_token", " + len(context_lens) * kv_bytes_per_token", "tokens in the contexts"),
    M("15.1", "int(tokens) * kv_bytes_per_token", "2 * int(tokens) * kv_bytes_per_token", "K and V are"),
    M("15.1", "    tokens = np.array(context_lens, np.int64).sum()", "    tokens = 0\n    while context_lens:\n        tokens += context_lens.pop()", "belongs to somebody else"),
    M("15.2", "float(np.maximum(reading, operations / flops))", "reading + operations / flops", "the longer one counts"),
    M("15.2", "float(np.maximum(reading, operations / flops))", "reading", "the longer one counts"),
    M("15.2", "operations = 2 * num_parameters", "operations = num_parameters", "a multiplication and an addition"),
    M("15.2", "num_parameters * len(context_lens)", "num_parameters * sum(context_lens)", "for each of"),
    M("15.3", "num_slots / tokens_held / seconds_per_step", "num_slots // tokens_held / seconds_per_step", "parts of them included"),
    M("15.3", " / num_output_tokens", "", "steps of"),
    M("15.3", "return num_slots / tokens_held / seconds_per_step / num_output_tokens", "return num_slots / tokens_held * seconds_per_step * num_output_tokens", "as many may come"),
]  # fmt: skip
STEPS_AHEAD = [
    M("16.1", "places[-1] + length", "places[0] + length", "the last one counts"),
    M("16.1", "places[-1] + length :", "places[-1] :", "what followed those tokens"),
    M("16.1", "reversed(range(shortest, longest + 1))", "range(shortest, longest + 1)", "longest end counts"),
    M("16.1", "reversed(range(shortest, longest + 1))", "reversed(range(shortest, longest))", "longest end counts|were there before"),
    M("16.1", "range(n - length)", "range(n - length + 1)", "were there before|nothing is guessed"),
    M("16.1", "shortest=1, longest=3", "shortest=2, longest=3", "Without shortest and longest"),
    M("16.1", "shortest=1, longest=3", "shortest=1, longest=2", "Without shortest and longest"),
    M("16.1", "shortest=1, longest=3", "shortest=1, longest=4", "Without shortest and longest"),
    M("16.1", "range(n - length)", "range(n - 2 * length + 1)", "were there before"),
    M("16.1", "[:num_tokens]", "", "were there before"),
    M("16.2", "takewhile(lambda pair: pair[0] == pair[1], zip(drafts, said))", "pair for pair in zip(drafts, said) if pair[0] == pair[1]", "before the first wrong one"),
    M("16.2", " + [said[len(right)]]", "", "one token more after them"),
    M("16.2", "[said[len(right)]]", "said[len(right) :]", "behind a wrong draft"),
    M("16.2", "[said[len(right)]]", "[said[-1]]", "one token more after them"),
    M("16.3", "(num_tokens + size - 1) // size", "num_tokens // size", "need .* blocks"),
    M("16.3", "(num_tokens + size - 1) // size", "num_tokens // size + 1", "need .* blocks"),
    M("16.3", "reversed(table.blocks[keep:])", "table.blocks[keep:]", "The last block goes back first"),
    M("16.3", "        table.pool.free(block)\n", "        pass\n", "loses one reference"),
    M("16.3", "table.block_hashes[: 1 + num_tokens // size]", "table.block_hashes[: 1 + keep]", "only full blocks have a hash"),
    M("16.3", "table.block_hashes[: 1 + num_tokens // size]", "table.block_hashes[: num_tokens // size]", "The root"),
    M("16.3", "    if num_tokens < 0 or num_tokens > table.num_tokens:\n", "    if num_tokens < 0:\n", "raise ConfigurationError"),
    M("16.3", "    table.num_tokens = num_tokens\n", "", "have a slot now"),
    M("16.4", "if place < max_tokens:", "if True:", "you know that before"),
    M("16.4", "~steps[-1]", "steps[-1]", "is not known yet"),
    M("16.4", "~steps[-1]", "~steps[0]", "is not known yet"),
    M("16.4", "len(prompt) - 1 + place", "len(prompt) + place", "each next one a place further"),
    M("16.4", "        if token == stop_token:\n            break\n", "", "nothing more is launched|nobody waits for it"),
    M("16.4", "        text.append(token)\n        if token == stop_token:\n            break\n", "        if token == stop_token:\n            break\n        text.append(token)\n", "which belongs to it"),
    M("16.4", "if place < max_tokens:", "if place + 1 < max_tokens:", "launch the one after it"),
    M("16.4", "        if place < max_tokens:\n", "        while len(steps) < max_tokens:\n            place = len(steps)\n", "in vain"),
    M("17.1", "        if block_hash in self.slots:\n            self.wanted(block_hash)\n            return\n", "", "in the tier already"),
    M("17.1", "            self.wanted(block_hash)\n            return\n", "            return\n", "longest time"),
    M("17.1", "oldest = next(iter(self.slots))", "oldest = next(reversed(self.slots))", "longest time"),
    M("17.1", "        if slot is not None:\n", "        if True:\n", "A slot is a whole number"),
    M("17.1", "            self.wanted(block_hash)\n            return True\n", "            return True\n", "longest time"),
    M("17.1", "        del self.slots[block_hash]\n        return False\n", "        return False\n", "so its block is copied|Nothing is overwritten|it is lost|is not read"),
    M("17.1", "            self.store.save(slot, block)\n            self.slots[block_hash] = slot\n", "            self.slots[block_hash] = slot\n            self.store.save(slot, block)\n", "it is lost|is not read"),
    M("17.1", "        return False\n\n\nclass Handover", "        return True\n\n\nclass Handover", "slot is damaged"),
    M("17.1", "if not free and taken:", "if taken:", "Nothing is overwritten while there is one"),
    M("17.1", "free = [self.slots.pop(oldest)]", "free = [self.slots[oldest]]", "it is lost|is not read|are wanted|longest time|asked for"),
    M("17.1", "self.store.load(slot, block):\n", "self.store.load(slot, slot):\n", "These K and V were asked for"),
    M("17.2", "Handover(table.num_tokens, list", "Handover(len(table.blocks) * table.pool.block_size, list", "as many tokens"),
    M("17.2", "list(map(read, table.blocks))", "list(table.blocks)", "What each block holds"),
    M("17.2", "list(map(read, table.blocks))", "list(map(read, reversed(table.blocks)))", "order of the table"),
    M("17.2", "            table.free()\n", "            pass\n", "All blocks that were taken go back"),
    M("17.2", "    finally:\n        if not done:\n            table.free()\n", "    except Exception:\n        table.free()\n        raise\n", "is no Exception"),
    M("17.2", "write(block, handover.contents[i])", "write(i, handover.contents[i])", "Block i of the new table"),
    M("17.2", "    table.append(handover.num_tokens)\n", "    table.append(len(handover.contents) * pool.block_size)\n", "the same tokens"),
    M("17.2", "    return Handover(table.num_tokens, list(map(read, table.blocks)))", "    handover = Handover(table.num_tokens, list(map(read, table.blocks)))\n    table.free()\n    return handover", "It stays as it is"),
    M("17.2", "    table = BlockTable(pool)\n    table.append(handover.num_tokens)\n", "    for contents in handover.contents:\n        write(pool.free_queue[0] if pool.free_queue else 0, contents)\n    table = BlockTable(pool)\n    table.append(handover.num_tokens)\n", "somebody else|Block i of the new"),
]  # fmt: skip
SINCE_THE_PAPER = [
    M("4.5", "last > table.num_tokens - window", "last >= table.num_tokens - window", "goes home if it ends before that"),
    M("4.5", "last = i * size + size - 1", "last = i * size", "goes home if it ends before that"),
    M("4.5", "            table.blocks[i] = -1\n", "", "NULL_BLOCK, -1, takes its place"),
    M("4.5", "            table.pool.free(block)\n            table", "            table", "loses one reference"),
    M("4.5", "        if block >= 0:\n", "        if True:\n", "has not gone already|there is no block -1"),
    M("4.5", "table.num_tokens - window < place", "table.num_tokens - window <= place", "read the slots of the others"),
    M("4.5", "seen[: len(seen) - (len(slots) - table.num_tokens)]", "seen", "read the slots of the others"),
    M("8.7", "list(tokens)[: self.pool.block_size - 1]", "list(tokens)[: self.pool.block_size]", "shorter than a block"),
    M("8.7", "token_ids[: len(token_ids) - 1]", "token_ids", "at least the last token is left"),
    M("8.7", "            parent = self.hash(parent, tokens[: self.unit])\n", "            parent = self.hash(b'', tokens[: self.unit])\n", "longest beginning"),
    M("8.7", "self.parts = {other: [None if key in keys else key for key in known] for other, known in self.parts.items()}\n        self.parts[block] = keys", "taken = {key for other, known in self.parts.items() if other != block for key in known}\n        self.parts[block] = [None if key in taken else key for key in keys]", "the newest block counts"),
    M("8.7", "best = block, (i + 1) * self.unit\n", "best = block, (i + 1) * self.unit\n            if best is None or best[1] <= i * self.unit:\n                break\n", "where a shorter one is not any more"),
    M("8.7", "            self.pool.revive(source)\n            self.pool.free(source)\n", "            pass\n", "goes to the end of the queue before that"),
    M("8.7", "            self.pool.free(source)\n", "", "the source as many as before|first in the free queue"),
    M("8.7", "[*table.blocks, self.pool.allocate()]", "[*table.blocks, source]", "a new block from the pool"),
    M("8.7", "table.num_tokens + num_tokens", "table.num_tokens + self.unit * 0", "the tokens of the part"),
    M("8.7", "        self.parts.pop(evicted, None)\n", "        pass\n", "longest beginning"),
    M("8.7", "self.parts.pop(evicted, None)", "self.parts.pop(evicted)", "KeyError"),
    M("8.8", "        self.lucky.add(block)\n", "", "was found|remembered|end of `new`"),
    M("8.8", "        self.lucky.discard(block)\n", "", "end of `new`|is remembered until the block is handed out|holds from now on is new"),
    M("8.8", "if len(free_and_lucky) > self.most:", "if False:", "goes to the end of `new`"),
    M("8.8", "            self.queue.move_to_end(free_and_lucky[0])\n", "", "goes to the end of `new`"),
    M("8.8", "free_and_lucky = [b for b in self.queue if b in self.lucky]", "free_and_lucky = sorted(self.lucky)", "goes to the end of `new`|KeyError"),
    M("9.5", "            return Admission.NEVER\n", "            return Admission.LATER\n", "preempted for ever"),
    M("9.5", "            todo = todo[: self.tokens_left]\n", "            pass\n", "the first chunk that needs room"),
    M("9.5", "        if not self.reserve_full:\n", "        if True:\n", "whole prompt of 6 needs room|have to stay free"),
    M("9.5", "(self.watermark_blocks if self.running else 0)", "self.watermark_blocks", "the largest would wait for ever"),
    M("9.5", "(self.watermark_blocks if self.running else 0)", "0", "while somebody runs"),
    M("9.5", " - len(asleep)", "", "leaves the free queue"),
    M("9.5", "[size * len(cached) :]", "", "is in use: 4 tokens"),
    M("9.5", "Admission.NOW if self._seats_left() else Admission.LATER", "Admission.NOW", "needs a seat"),
]  # fmt: skip
NUMBERS = WHY_PAGING + GPT_AND_CACHE + QUANTIZED + KERNELS + PARALLEL + MEASURING + OWN_MODEL + PAPER + STEPS_AHEAD
MISTAKES = (
    NUMBERS
    + SCHEDULER
    + PREEMPTION
    + BLOCK_POOL
    + BLOCK_TABLE
    + ATTENTION
    + COPY_ON_WRITE
    + PREFIX_CACHE
    + SINCE_THE_PAPER
)
