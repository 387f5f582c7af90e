"""More wrong solutions, of the kinds that are hard to see: right on tame numbers, in narrow traffic, or but for what
they do on the side. Written as in mistakes.py.

    numbers      an epsilon here, a maximum for all there, a mask that is not low enough, one dimension only
    side effects what was lent is written to, what must stay is thrown away, or told to others
    bounds       negative blocks, a block more, nothing at all
    traffic      right as long as nobody shares, swaps, or comes back
    the point    the right result, and not what the exercise is about
"""

from tests.learn.mistakes import M

WHY_PAGING = [
    M("1.1", "max_len * len(lengths)))", "max_len * len(lengths)) - Fraction(1, 10**11))", "share that is wasted is"),
    M("1.1", "return float(1", "return round(1", "share that is wasted is"),
    M("1.1", "float(1 - Fraction(sum(lengths), max_len * len(lengths)))", "float(100 - Fraction(100 * sum(lengths), max_len * len(lengths)))", "per cent"),
    M("1.1", "    if not lengths:\n", "    lengths.sort()\n    if not lengths:\n", "belongs to somebody else"),
    M("1.1", "    if not lengths:\n", "    if not sum(lengths):\n", "share that is used"),
    M("1.1", "float(1 - Fraction(sum(lengths), max_len * len(lengths)))", "str(1 - sum(lengths) / (max_len * len(lengths)))", "one number, not a str"),
    M("1.2", "-length % block_size for length", "(-length % block_size if length else block_size) for length", "no slot is taken|slots are taken"),
    M("1.2", "return sum(holes) / slots if", "return sum(h / (h + n) for h, n in zip(holes, lengths) if n) / len(lengths) if", "slots are taken"),
    M("1.2", "return sum(holes) / slots", "return round(sum(holes) / slots, 3)", "slots are taken"),
    M("1.2", "    holes =", "    lengths.sort()\n    holes =", "belongs to somebody else"),
    M("1.3", "total <= num_slots for", "total <= num_slots and total for", "exactly full"),
    M("1.3", "    return sum(total", "    needed.append(0)\n    return -1 + sum(total", "belongs to somebody else|nobody behind it|Nobody came"),
    M("1.3", "return sum(total <=", "return 1.0 * sum(total <=", "whole number"),
]  # fmt: skip
GPT_AND_CACHE = [
    M("2.1", "np.exp(scores - scores.max())", "np.exp(np.minimum(scores, 80))", "Take the highest score off"),
    M("2.1", "scores - scores.max()", "scores - (k @ q[row].T).max() * q.shape[-1] ** -0.5", "of each query and head|place for every"),
    M("2.1", "            scores = k[:seen, h] @ q[row, h]", "            q *= 1.0\n            q[row, h] /= 1.5\n            scores = k[:seen, h] @ q[row, h] * 1.5", "was changed"),
    M("2.1", "            weights = np.exp(scores - scores.max())\n            out[row, h] = weights @ v[:seen, h] / weights.sum()",
      "            scores = k[:, h] @ q[row, h] * q.shape[-1] ** -0.5\n            scores[seen:] = -1000\n            weights = np.exp(scores - scores.max())\n"
      "            out[row, h] = weights @ v[:, h] / weights.sum()", "-1000 is not small enough"),
    M("2.1", "            weights = np.exp(scores - scores.max())\n            out[row, h] = weights @ v[:seen, h] / weights.sum()",
      "            scores = k[:, h] @ q[row, h] * q.shape[-1] ** -0.5\n            scores[seen:] += -1e4\n            weights = np.exp(scores - scores.max())\n"
      "            out[row, h] = weights @ v[:, h] / weights.sum()", "-1000 is not small enough"),
    M("2.1", "/ weights.sum()", "/ (weights.sum() + 1e-3)", "Scores are q"),
    M("2.1", "weights @ v[:seen, h] / weights.sum()", "np.where(abs(v[:seen, h]) < 1e-5, 0, v[:seen, h]).T @ weights / weights.sum()", "Take the highest"),
    M("2.2", "setdefault(layer, ", "setdefault(layer % 2, ", "K and V of this layer so far"),
    M("2.2", "        keys.extend(k)\n", "        k *= 2\n        k /= 2\n        q *= 0\n        keys.extend(k)\n", "was changed"),
    M("2.2", "        values.extend(v)\n        return causal_attention(q", "        values.extend(v)\n        return causal_attention(q[-1:]", "place for every number"),
    M("2.3", "        out += new\n", "        out += new\n        prompt += new\n", "belongs to somebody else"),
    M("2.3", "        out += new\n    return out", "        out += new\n    return np.array(out)", "A list of the new tokens"),
    M("2.3", "    for _ in range(num_tokens):", "    while len(new) > 1:\n        model.forward(np.asarray(new[:1]), np.array([position]), attend)\n        new, position = new[1:], position + 1\n"
      "    for _ in range(num_tokens):", "all of the prompt first and at once"),
    M("2.3", "    attend, new", "    model.forward(np.asarray(prompt), np.arange(len(prompt)), CachedAttention())\n    attend, new", "computed once"),
]  # fmt: skip
BLOCK_POOL = [
    M("3.1", "if block not in range(self.num_blocks)", "if block not in range(-1, self.num_blocks)", "no block -1"),
    M("3.1", "if block not in range(self.num_blocks)", "if block not in range(self.num_blocks + 1)", "no block 3"),
    M("3.1", "return self.holders.get(block, 0)", "import numpy\n        return numpy.int64(self.holders.get(block, 0))", "an int of Python's"),
    M("3.1", "self.unused = [*range(num_blocks)]", "self.unused = [*map(str, range(num_blocks))]", "whole number"),
    M("3.1", "block_size: int = 16", "block_size: int = 4", "16 slots"),
    M("3.1", "self.unused = [*range(num_blocks)]", "self.unused = [*range(num_blocks)][:32]", "all free"),
    M("3.2", "self.on_reuse = lambda block: None", "self.on_reuse = None", "not callable"),
    M("3.2", "        block = self.unused.pop(0)\n", "        import numpy\n        block = numpy.int64(self.unused.pop(0))\n", "an int of Python's"),
    M("3.2", "        if not self.unused:\n", "        self.on_reuse(self.unused[0]) if self.unused else 0\n        if not self.unused:\n", "once"),
    M("3.3", "        if not self.ref_count(block):", "        if block < 0:\n            block += self.num_blocks\n        if not self.ref_count(block):", "no block -1|changes? nothing|leave everything"),
    M("3.3", "        left = self.holders.pop(block) - 1\n        if left:", "        left = self.holders.pop(block) - 1\n        self.on_reuse(block)\n        if left:", "gets? new contents|new contents"),
    M("3.3", "        if not self.ref_count(block):", "        if self.holders.get(block) is None and block in range(self.num_blocks):", "no block|KeyError"),
    M("3.4", "            self.holders[block] += 1\n", "            self.holders[block % self.num_blocks] += 1\n", "no block"),
    M("3.4", "            self.holders[block] += 1\n", "            self.holders[block] = min(3, self.holders[block] + 1)\n", "adds one reference"),
    M("3.5", "        if len(self.unused) < count:", "        if len(self.unused) < count:\n            self.unused.sort()", "must leave everything"),
    M("3.5", "[self.allocate() for _ in range(count)]", "sorted(self.allocate() for _ in range(count))", "in order"),
    M("3.5", "[self.allocate() for _ in range(count)]", "tuple(self.allocate() for _ in range(count))", "as a list"),
    M("3.5", "        if len(self.unused) < count:", "        if len(self.unused) <= count and count:", "OutOfBlocksError|returned|line|More blocks"),
    M("3.5", "        if len(self.unused) < count:\n            raise OutOfBlocksError(\"too few are free\")\n        return [self.allocate() for _ in range(count)]",
      "        taken = []\n        for _ in range(count):\n            if not self.unused:\n                [self.free(b) for b in taken]\n                raise OutOfBlocksError(\"too few are free\")\n"
      "            taken.append(self.allocate())\n        return taken", "must leave everything"),
    M("3.6", "            self.unused.remove(block)\n", "            self.unused.remove(block % self.num_blocks)\n", "no block"),
    M("3.6", "            self.unused.remove(block)\n", "            self.unused.remove(block)\n            self.unused.sort()\n", "keep their order"),
]  # fmt: skip
BLOCK_TABLE = [
    M("4.1", "    return full + bool(rest)", "    import math\n    return 1.0 * math.ceil(num_tokens / block_size)", "whole number"),
    M("4.1", "full + bool(rest)", "full + bool(rest) if num_tokens else 1", "0 tokens need none"),
    M("4.1", "full + bool(rest)", "min(full + bool(rest), 1000)", "Every started block"),
    M("4.2", "        if self.blocks_to_allocate(num_tokens) > self.pool.num_free:\n            raise OutOfBlocksError(\"too few blocks\")\n        for _ in range(num_tokens):\n",
      "        old, n = list(self.blocks), self.num_tokens\n        new = self.blocks_to_allocate(num_tokens)\n        if new > self.pool.num_free:\n            taken = [self.pool.allocate() for _ in range(self.pool.num_free)]\n"
      "            for block in taken:\n                self.pool.free(block)\n            raise OutOfBlocksError(\"too few blocks\")\n        for _ in range(num_tokens):\n", "not even to give it back"),
    M("4.2", "self.blocks.append(self.pool.allocate())", "self.blocks = (*self.blocks, self.pool.allocate())", "is a list of block numbers"),
    M("4.2", "self.blocks.append(self.pool.allocate())", "self.blocks.append(self.pool.allocate())\n                self.keys.append(b'')", "changes nothing|append"),
    M("4.2", "self.blocks.append(self.pool.allocate())", "self.pool.allocate()\n                self.blocks.append(len(self.blocks))", "from the pool|has one reference"),
    M("4.2", "if num_tokens < 0:", "if num_tokens < 0 and self.num_tokens + num_tokens <= 0:", "raise ConfigurationError"),
    M("4.2", "        self.pool, self.blocks, self.num_tokens, self.keys = pool, [], 0, []", "        self.pool, self.blocks, self.num_tokens, self.keys = pool, SHARED, 0, []\n\n    SHARED = []", "SHARED|of its own"),
    M("4.3", "if start < 0 or stop > self.num_tokens or start > stop:", "if stop > self.num_tokens or start > stop:", "have a slot"),
    M("4.3", "return slots[start:stop]", "import numpy\n        return numpy.array(slots[start:stop])", "has to be a list"),
    M("4.3", "return slots[start:stop]", "import numpy\n        return list(numpy.array(slots, int)[start:stop])", "int of Python's"),
    M("4.3", "return slots[start:stop]", "return (slot for slot in slots[start:stop])", "has to be a list"),
    M("4.3", "or start > stop:", "or start >= stop:", "ConfigurationError"),
    M("4.4", "        for block in self.blocks[::-1]:\n            self.pool.free(block)\n        self.blocks,", "        for block in sorted(self.blocks)[::-1]:\n            self.pool.free(block)\n        self.blocks,", "goes back first"),
    M("4.4", "self.blocks, self.num_tokens, self.keys = [], 0, []", "self.blocks, self.num_tokens = [], 0", "is empty"),
    M("4.4", "self.blocks, self.num_tokens, self.keys = [], 0, []", "self.blocks, self.num_tokens, self.keys = None, 0, []", "is a list of block numbers"),
]  # fmt: skip
COPY_ON_WRITE = [
    M("7.1", "[self.pool.share(block) for block in twin]", "[self.pool.share(block) for block in twin if self.pool.ref_count(block) == 1]", "one more"),
    M("7.1", "[self.pool.share(block) for block in twin]", "[self.pool.share(block) for block in self.blocks[-1:]]", "needs a second reference"),
    M("7.1", "[self.pool.share(block) for block in twin]", "[self.pool.share(i) for i, _ in enumerate(twin)]", "needs a second reference|BlockError"),
    M("7.1", "        return twin", "        self.keys = []\n        return twin", "stays as it is"),
    M("7.1", "        return twin", "        self.pool.free(self.pool.allocate())\n        return twin", "takes no block"),
    M("7.2", "            return self.blocks[-1]\n", "            return len(self.blocks) - 1\n", "not its place in the table"),
    M("7.2", "self.pool.ref_count(self.blocks[-1]) != 1", "max(map(self.pool.ref_count, self.blocks)) != 1", "Nobody else holds the last"),
    M("7.2", "self.pool.ref_count(self.blocks[-1]) != 1", "self.pool.ref_count(self.blocks[-1]) == 2", "another table holds it too"),
    M("7.2", "            return self.blocks[-1]\n", "            return True\n", "another table holds it too"),
    M("7.3", "1 if num_tokens and self", "1 if num_tokens > 1 and self", "one to copy the shared tail into"),
    M("7.3", "return copies + super().blocks_to_allocate(num_tokens)", "return max(copies, super().blocks_to_allocate(num_tokens))", "one to copy the shared tail into"),
    M("7.4", "        self.pool.free(tail)\n", "        self.pool.free(tail)\n        self.pool.free(tail) if self.pool.ref_count(tail) else 0\n", "number of tables that hold it"),
    M("7.4", "        if self.blocks_to_allocate(num_tokens) > self.pool.num_free:\n            raise OutOfBlocksError(\"too few blocks\")\n        orders = self.make_private() if num_tokens else []\n        super().append(num_tokens)\n",
      "        old, tail = list(self.blocks), self.shared_tail()\n        orders = self.make_private() if num_tokens else []\n        try:\n            super().append(num_tokens)\n        except OutOfBlocksError:\n"
      "            if orders:\n                self.pool.free(self.blocks[-1])\n                self.pool.share(tail)\n                self.blocks = old\n            raise\n", "changes nothing at all"),
    M("7.4", "        super().append(num_tokens)\n", "        super().append(num_tokens)\n        orders = orders and [*orders, *orders]\n", "has to be copied"),
    M("7.4", "        return orders", "        return orders or None", "list of pairs"),
    M("7.4", "return [BlockCopy(source=tail, destination=self.blocks[-1])]", "return [BlockCopy(source=len(rest), destination=self.blocks[-1])]", "has to be copied"),
]  # fmt: skip
BLOCKS = "    blocks = [*zip(k_blocks, v_blocks)]\n    return np.stack([one_head(q[h], [(k[:, h], v[:, h]) for k, v in blocks], scale) for h in range(len(q))])"
ATTEND = "    out = np.zeros(q.shape)\n    for h in range(len(q)):\n        kv = h // (len(q) // k.shape[1])\n        out[h] = one_head(q[h], [(k[:, kv], v[:, kv])], scale)\n    return out"
EINSUM = "    k, v = (np.repeat(a, len(q) // k.shape[1], axis=1) for a in (k, v))\n    scores = np.einsum('hd,nhd->hn', q, k) * scale\n"
ATTENTION = [
    M("5.1", "    slots = [", "    np.nan_to_num(cache, copy=False)\n    slots = [", "cache was changed"),
    M("5.1", "    slots = [", "    block_table[-(-context_len // size):] = 0\n    slots = [", "block_table was changed"),
    M("5.1", "    return cache.reshape(-1, *cache.shape[2:])[slots]", "    return np.nan_to_num(cache.reshape(-1, cache.shape[3], cache.shape[2])[slots].reshape(len(slots), *cache.shape[2:]))[:, :, ::1] if cache.shape[2] == 1 else cache.reshape(-1, *cache.shape[2:])[slots][:, ::-1]", "Token i is in block"),
    M("5.1", "    return cache.reshape(-1, *cache.shape[2:])[slots]", "    return cache.reshape(-1, *cache.shape[2:])[slots].tolist()", "has to be an array"),
    M("5.2", ATTEND, EINSUM + "    weights = np.exp(scores - scores.max())\n    return np.einsum('hn,nhd->hd', weights / weights.sum(axis=1, keepdims=True), v)", "of each head its own"),
    M("5.2", ATTEND, EINSUM + "    weights = np.exp(np.clip(scores, -80, 80))\n    return np.einsum('hn,nhd->hd', weights / weights.sum(axis=1, keepdims=True), v)", "of each head its own"),
    M("5.2", ATTEND, EINSUM + "    weights = np.exp(scores - scores.max(axis=1, keepdims=True))\n    return np.einsum('hn,nhd->hd', weights / (weights.sum(axis=1, keepdims=True) + 1e-4), v)", "softmax over the tokens"),
    M("5.2", ATTEND, EINSUM + "    q *= scale\n    scores = np.einsum('hd,nhd->hn', q, k)\n    weights = np.exp(scores - scores.max(axis=1, keepdims=True))\n    return np.einsum('hn,nhd->hd', weights / weights.sum(axis=1, keepdims=True), v)", "was changed"),
    M("5.2", "    return acc / total", "    return np.where(abs(acc / total) < 1e-8, 0, acc / total)", "softmax over the tokens|large"),
    M("5.3", "    rows = []\n", "    rows = []\n    q *= scale\n    scale = 1.0\n", "q was changed"),
    M("5.3", "    rows = []\n", "    rows = []\n    k_cache[np.isnan(k_cache)] = 0\n", "k_cache was changed"),
    M("5.3", "    rows = []\n", "    rows = []\n    v_cache[np.isnan(v_cache)] = 0\n", "v_cache was changed"),
    M("5.3", "np.array(rows, q.dtype)", "np.array(rows, np.float32)", "q's dtype"),
    M("5.3", "np.array(rows, q.dtype)", "np.array(rows)", "q's dtype"),
    M("5.4", BLOCKS, "    return attend(q, np.concatenate(list(k_blocks)), np.concatenate(list(v_blocks)), scale)", "One of the two iterators"),
    M("5.4", BLOCKS, "    blocks = [*zip(k_blocks, v_blocks)]\n    return attend(q, np.concatenate([k for k, _ in blocks]), np.concatenate([v for _, v in blocks]), scale)", "The blocks were joined"),
    M("5.4", BLOCKS, "    keys, values = [], []\n    for k, v in zip(k_blocks, v_blocks):\n        keys.extend(k)\n        values.extend(v)\n    return attend(q, np.array(keys), np.array(values), scale)", "The blocks were joined"),
    M("5.4", BLOCKS, "    all_k, all_v = np.zeros((0, *q.shape)), np.zeros((0, *q.shape))\n    for k, v in zip(k_blocks, v_blocks):\n        all_k, all_v = np.vstack([all_k, k]), np.vstack([all_v, v])\n    return attend(q, all_k, all_v, scale)", "The blocks were joined"),
    M("5.4", BLOCKS, "    top, total, acc = -np.inf, 0.0, 0.0\n    for k, v in zip(k_blocks, v_blocks):\n        scores = np.einsum('hd,mhd->hm', q, k) * scale\n        new = max(top, scores.max())\n        weights = np.exp(scores - new)\n"
      "        shrink = np.exp(top - new)\n        total = total * shrink + weights.sum(axis=1)\n        acc = acc * shrink + np.einsum('hm,mhd->hd', weights, v)\n        top = new\n    return acc / total[:, None]", "of each head its own|head its own"),
    M("5.4", "    return np.stack([one_head(q[h], [(k[:, h], v[:, h]) for k, v in blocks]", "    return np.stack([one_head(q[h], [(k[:, h], v[:, h]) for k, v in blocks if len(k) > 0][:4]", "has to shrink"),
]  # fmt: skip
SCHEDULER = [
    M("6.1", "    before = [0, *accumulate(wanted)]\n", "    wanted.append(0)\n    before = [0, *accumulate(wanted)]\n", "In order|belongs to somebody else"),
    M("6.1", "    return [max(0, min(mine, budget - earlier)) for mine, earlier in zip(wanted, before)]", "    return (max(0, min(mine, budget - earlier)) for mine, earlier in zip(wanted, before))", "has to be a list"),
    M("6.1", "return [max(0, min(mine, budget - earlier)) for mine, earlier in zip(wanted, before)]", "return [round(mine * min(1, budget / max(1, sum(wanted)))) for mine in wanted]", "In order"),
    M("6.2", "group.blocks_to_start(size)", "-(-group.leader.num_prompt_tokens // size)", "It could grow to"),
    M("6.2", "if pool.ref_count(block) > 0]", "if pool.ref_count(block) > 1]", "in use"),
    M("6.2", "return Admission.NOW if left >= must_stay else Admission.LATER", "return left >= must_stay", "has to return Admission"),
    M("6.2", "left >= must_stay", "left > must_stay", "prompt of 6 takes 3"),
    M("6.2", "        must_stay =", "        self.watermark_blocks += 1\n        self.watermark_blocks -= 1\n        cached.sort(reverse=True)\n        must_stay =", "It is a question|admission is a question"),
    M("6.2", "group.most_blocks(size) > pool.num_blocks", "group.most_blocks(size) >= pool.num_blocks", "The last token is never stored|could grow"),
    M("6.3", "self._start(group, *found)", "self._start(group, [], found[1][:1])", "prefix"),
    M("6.3", "self._start(group, *found)", "self._start(group, [], [])", "prefix"),
    M("6.3", "self.admission(group, found[0])", "self.admission(group, [])", "has to wait although|prefix"),
    M("6.3", "            if budget <= 0 or self", "            if budget <= 0 or plan.chunks[8:] or self", "has to wait although|chunk"),
    M("6.3", "            self._give_slots(chunks, plan)\n            budget", "            plan.chunks.extend(chunks)\n            budget", "OutOfBlocks|cannot be used|slot|free blocks|every planned token|has to be|IndexError"),
    M("6.3", "            chunks = group.next_chunks(budget)\n            self._give_slots(chunks, plan)\n            budget -= sum(chunk.num_tokens for chunk in chunks)", "            chunks = group.next_chunks(budget)\n            self._give_slots(chunks, plan)\n            budget -= len(group.leader.token_ids)", "what is left of the budget|has to wait"),
    M("6.4", "        left = self._swap_in(plan, left)\n", "        if not self.running:\n            left = self._swap_in(plan, left)\n", "comes back as soon as|as soon as"),
    M("6.4", "        return plan\n\n    def _start", "        return None\n\n    def _start", "has to return the plan"),
    M("6.4", "left = self.max_num_batched_tokens\n", "left = self.max_num_batched_tokens - 1\n", "what is left of the budget|has to wait"),
    M("6.4", "        if plan.preempted:\n            return plan\n", "", "had to preempt"),
    M("6.4", "        if self.swapped == []:", "        if self.swapped == [] and not self.running:", "has to wait although"),
    M("6.4", "        if self.swapped == []:", "        if self.swapped == [] and not plan.swap_in:", "has to wait although"),
    M("6.4", "        plan = StepPlan([], [], [], [], [])\n", "        self.running.sort(key=lambda group: -group.num_blocks)\n        plan = StepPlan([], [], [], [], [])\n", "in order|gives way|who runs|policy|preempt|chunk"),
]  # fmt: skip
PREEMPTION = [
    M("9.1", "            *_, victim = self.running\n", "            victim = next(g for g in self.running[::-1] if g is not group or len(self.running) == 1)\n", "gives way|last in the running"),
    M("9.1", "                return False\n        return True", "                return False\n        return None", "has to return True"),
    M("9.1", "self.block_pool.num_free < blocks_to_allocate(chunks)", "self.block_pool.num_free < sum(chunk.num_tokens for chunk in chunks)", "only until there is room"),
    M("9.1", "self.block_pool.num_free < blocks_to_allocate(chunks)", "self.block_pool.num_free <= blocks_to_allocate(chunks)", "only until there is room|cannot be used"),
    M("9.1", "            *_, victim = self.running\n", "            victim = min(self.running[::-1], key=lambda group: group.num_blocks)\n", "last in the running"),
    M("9.1", "            self.preempt(victim, plan)\n", "            self.preempt(victim, plan)\n            self.preempt(self.running[-1], plan) if len(self.running) > 3 else 0\n", "only until there is room"),
    M("9.2", "        plan.preempted.append(group)\n", "        plan.preempted.append(group.group_id)\n", "is a list of groups"),
    M("9.2", "        group.num_preemptions += 1\n", "        group.num_preemptions = 1\n", "preempt.. counts"),
    M("9.2", "        self._enqueue(group, Status.WAITING)\n\n    def can_save", "        self._enqueue(group, Status.SWAPPED)\n\n    def can_save", "another list|swap"),
    M("9.2", "        self._enqueue(group, Status.WAITING)\n\n    def can_save", "        self.waiting.append(group)\n        group.status = Status.WAITING\n\n    def can_save", "policy|waits|nobody|preempted|runs"),
    M("9.2", "        self._enqueue(group, Status.WAITING)\n\n    def can_save", "\n    def can_save", "put nowhere"),
    M("9.2", "        self.running.remove(group)\n        plan.preempted", "        plan.preempted", "another list|in two|OutOfBlocks|no end|cannot be used|only until"),
    M("9.3", "plan.swap_out[len(plan.swap_out) :] = group.move_to(self.swap_pool)", "plan.swap_out.extend((b, a) for a, b in group.move_to(self.swap_pool))", "as pairs .block, block of the swap pool"),
    M("9.3", "plan.swap_out[len(plan.swap_out) :] = group.move_to(self.swap_pool)", "group.move_to(self.swap_pool)", "nobody copies K and V"),
    M("9.3", "plan.swap_out[len(plan.swap_out) :] = group.move_to(self.swap_pool)", "plan.swap_out[:] = group.move_to(self.swap_pool)", "orders the copies"),
    M("9.3", "plan.swap_out[len(plan.swap_out) :] = group.move_to(self.swap_pool)", "plan.swap_out.extend(2 * group.move_to(self.swap_pool))", "orders the copies"),
    M("9.3", "plan.swap_out[len(plan.swap_out) :] = group.move_to(self.swap_pool)", "plan.swap_out.append(group.move_to(self.swap_pool))", "is a list of what group.move_to"),
    M("9.3", "if self.swap_pool is None or self.preemption", "if self.preemption", "NoneType"),
    M("9.3", "group.num_blocks <= self.swap_pool.num_free", "group.num_blocks < self.swap_pool.num_free", "if that is wanted"),
    M("9.3", "group.num_blocks <= self.swap_pool.num_free", "sum(len(seq.block_table) for seq in group.sequences) <= self.swap_pool.num_free", "if that is wanted"),
    M("9.3", 'self.preemption == "auto" and len(group.sequences) == 1:', 'self.preemption == "auto" and group.max_num_seqs == 1:', "if that is wanted"),
    M("9.3", "        plan.preempted.append(group)\n", "        if not self.can_save(group):\n            plan.preempted.append(group)\n", "plan.preempted.append"),
    M("9.4", "            budget -= self._give_slots(chunks, plan)\n", "            budget -= self._give_slots(chunks, plan)\n            break\n", "Then the next one"),
    M("9.4", "budget -= self._give_slots(chunks, plan)", "self._give_slots(chunks, plan)", "max_num_batched_tokens|let in too early|budget"),
    M("9.4", "            if group.max_num_seqs > self._seats_left():\n                break", "            if group.max_num_seqs > self._seats_left():\n                continue", "nobody behind it"),
    M("9.4", "            if needed > self.block_pool.num_free:\n                break", "            if needed > self.block_pool.num_free:\n                continue", "nobody behind it"),
    M("9.4", "            if group.max_num_seqs > self._seats_left():\n                break", "            if len(group.sequences) > self._seats_left():\n                break", "there are seats|seat"),
    M("9.4", "        return budget", "        return None", "how much of the budget is left"),
    M("9.4", "            chunks = group.next_chunks(budget)\n            needed", "            chunks = group.next_chunks(self.max_num_batched_tokens)\n            needed", "budget"),
    M("9.4", "        for group in list(self.swapped):\n", "        for group in list(self.swapped):\n            if budget <= 0:\n                break\n", "comes back as soon as"),
    M("9.4", "plan.swap_in.extend(group.move_to(self.block_pool))", "plan.swap_in.extend((b, a) for a, b in group.move_to(self.block_pool))", "as pairs .swap, block"),
]  # fmt: skip
KEY = '        return parent + b";" + repr((self.nonce, *token_ids)).encode()'
HOLD = "                self.hold(kept)\n"
PREFIX_CACHE = [
    M("8.1", KEY, "        return b'%032d' % hash((parent, self.nonce, *token_ids))", "hash.. is not a cryptographic|modulo"),
    M("8.1", KEY, "        import zlib\n        return b'%032d' % zlib.crc32(parent + repr((self.nonce, *token_ids)).encode())", "zlib.crc32 is not|by chance"),
    M("8.1", KEY, "        import hashlib\n        return hashlib.sha256(parent + repr((self.nonce, *token_ids)).encode()).digest()[:4]", "4 bytes is too short"),
    M("8.1", KEY, "        import hashlib\n        return hashlib.sha256(parent + repr((self.nonce, *token_ids)).encode()).digest()[:3] * 6", "by chance"),
    M("8.1", KEY, "        import hashlib\n        return hashlib.sha256(self.nonce.encode() + parent + b',' + b','.join(b'%d' % t for t in token_ids)).digest()", "run into each other"),
    M("8.1", KEY, "        import hashlib\n        return hashlib.sha256(self.nonce.encode() + b','.join([parent, *(b'%d' % t for t in token_ids)])).digest()", "run into each other"),
    M("8.1", KEY, "        import hashlib\n        return hashlib.sha256(self.nonce.encode() + parent + b';' + bytes(t % 256 for t in token_ids)).digest()", "do not fit into"),
    M("8.1", KEY, "        import hashlib\n        return hashlib.sha256(self.nonce.encode() + parent + b';' + b''.join((t % 2**32).to_bytes(4) for t in token_ids)).digest()", "do not fit into|large numbers"),
    M("8.1", KEY, "        return repr((self.nonce, parent[:6], *token_ids)).encode()", "run into each other|another beginning"),
    M("8.1", KEY, "        return repr((self.nonce, parent, *sorted(token_ids))).encode()", "another order"),
    M("8.1", KEY, "        return repr((self.nonce, parent, *token_ids))", "A key is bytes"),
    M("8.1", KEY, "        self.n = getattr(self, 'n', 0) + 1\n        return repr((self.nonce, parent, *token_ids, self.n)).encode()", "always, and whether they come"),
    M("8.2", "            kept = self.table.setdefault(table.keys[-1], block)\n", "            kept = self.table.setdefault(table.keys[-1], i)\n", "gives none back"),
    M("8.2", "            table.keys = [self.root(salt)]", "            table.keys = [self.root('salt')]", "root.salt., of its own"),
    M("8.2", "        size = self.pool.block_size\n        done", "        token_ids.reverse()\n        token_ids.reverse()\n        token_ids += [0]\n        size = self.pool.block_size\n        done", "belong to somebody else"),
    M("8.2", "        if table.keys == []:\n", "        if table.keys == [] and table.num_tokens >= self.pool.block_size:\n", "root alone|IndexError|the root, and"),
    M("8.2", "        if table.keys == []:\n", "        self.pool.share(table.blocks[0]) if table.blocks else 0\n        if table.keys == []:\n", "takes no block and gives"),
    M("8.2", "        if table.keys == []:\n", "        if True:\n", "is not published again"),
    M("8.3", "            rest = rest[size:]\n", "            rest = rest[size:]\n            self.num_hit_tokens += size\n            self.table.pop(key) if len(blocks) > 1 else 0\n", "Looking changes nothing|as far|far as"),
    M("8.3", "        blocks, keys, size = [], [self.root(salt)], self.pool.block_size", "        if getattr(self, 'last', None) and self.last[0] == (*token_ids, salt):\n            return self.last[1]\n        blocks, keys, size = [], [self.root(salt)], self.pool.block_size\n"
      "        self.last = (*token_ids, salt), (blocks, keys)", "lists of its own|far as|As far"),
    M("8.3", "        while len(rest) > size:", "        while len(rest) > size + 1:", "As far as the text is the same"),
    M("8.3", "                return blocks, keys\n", "                return [], keys[:1]\n", "As far as the text is the same"),
    M("8.4", "take = self.pool.share if self.pool.ref_count(block) else self.pool.revive", "take = self.pool.share if self.pool.ref_count(self.pool.num_blocks - 1) else self.pool.revive", "BlockError|one reference more"),
    M("8.4", "            self.hold(block)\n\n    def hold", "            self.hold(block) if self.pool.ref_count(block) else [self.pool.revive(block), self.pool.on_reuse(block)]\n\n    def hold", "handed out for new contents"),
    M("8.4", "        table.num_tokens = self.pool.block_size * len(blocks)\n", "        table.num_tokens = self.pool.block_size * len(keys)\n", "All tokens of the adopted"),
    M("8.4", "        table.num_tokens = self.pool.block_size * len(blocks)\n", "        table.num_tokens = self.pool.block_size * len(blocks)\n        keys.clear()\n", "belong to somebody else"),
    M("8.5", "self.table, self.nonce = {}, secrets.token_hex(8)", "self.table, self.nonce = {}, 'new'", "draws a new secret at random|rest on old"),
    M("8.5", "self.table, self.nonce = {}, secrets.token_hex(8)", "self.table, self.nonce = {}, self.nonce[::-1]", "draws a new secret at random"),
    M("8.5", "self.table = {key: known for key, known in self.table.items() if known != block}", "self.table = {key: known for key, known in self.table.items() if known < block}", "nobody has to forget|nothing is lost|be found|Block 2"),
    M("8.5", "    def forget(self, block):\n", "    def forget(self, block):\n        if block not in self:\n            raise KeyError(block)\n", "KeyError"),
    M("8.5", "    def forget(self, block):\n", "    def forget(self, block):\n        self.pool.free(block) if self.pool.ref_count(block) > 1 else 0\n        self.pool.on_reuse = lambda block: None\n", "can be found|found any more|holds|is found under"),
    M("8.6", HOLD, "                self.pool.share(kept)\n", "pool.revive, as in adopt"),
    M("8.6", HOLD, "                self.pool.revive(kept)\n", "BlockError"),
    M("8.6", "                self.pool.free(block)\n", "                while self.pool.ref_count(block):\n                    self.pool.free(block)\n", "no other's"),
    M("8.6", HOLD + "                table.blocks[i] = kept\n                self.pool.free(block)\n", "                self.pool.free(block)\n" + HOLD + "                table.blocks[block % len(table.blocks)] = kept\n", "nothing is stored twice"),
]  # fmt: skip
QUANTIZED = [
    M("10.1", "scales[i] = top / 127", "scales[i] = (top + 1e-8) / 127", "largest magnitude"),
    M("10.1", "        if top:\n", "        if top > 1e-5:\n", "no row is too small"),
    M("10.1", "        if top:\n", "        if top > 1e-20:\n", "no row is too small|largest magnitude"),
    M("10.1", "np.round(row * (127 / top))", "np.floor(row * (127 / top) + 0.501)", "rounded to the nearest"),
    M("10.1", "        top = max", "        row -= 0\n        rows[i] = rows[i] * 2\n        top = max", "was changed"),
    M("10.1", "    return codes, scales", "    return codes, scales.astype(float)", "float32"),
    M("10.1", "    return codes, scales", "    return codes, scales[:, None]", "A scale for each row"),
    M("10.1", "    return codes, scales", "    return codes.tolist(), scales.tolist()", "Two arrays"),
    M("10.2", "code * np.float32(scale)", "code * np.float32(scale + 1e-9)", "its own scale"),
    M("10.2", "    return np.stack(", "    scales *= 2\n    scales /= 2\n    codes += 1\n    codes -= 1\n    codes[0, 0] = 0\n    return np.stack(", "was changed"),
    M("10.2", ".astype(np.float32)\n\n\ndef bytes", ".astype(np.float64)\n\n\ndef bytes", "Attention computes in float32"),
    M("10.2", "code * np.float32(scale)", "code * np.float16(scale)", "its own scale"),
    M("10.3", "return 2 * (numbers", "return 2.0 * (numbers", "whole number"),
    M("10.3", "    scales = block_size * num_layers * num_kv_heads", "    scales = block_size * num_layers", "4 of its scale"),
]  # fmt: skip
PARALLEL = [
    M("12.1", "    return np.split(weight, size, axis=1)[rank], np.split(bias, size)[rank]\n\n\ndef split_rows", "    weight[:] = np.roll(weight, 0)\n    bias -= bias[0]\n    return np.split(weight, size, axis=1)[rank], np.split(bias, size)[rank]\n\n\ndef split_rows", "was changed"),
    M("12.1", "np.split(weight, size, axis=1)[rank]", "weight[:, rank::size]", "has the columns"),
    M("12.2", "    return np.split(weight, size)[rank], bias * (rank == 0)", "    if rank:\n        bias[:] = 0\n    return np.split(weight, size)[rank], bias", "was changed"),
    M("12.2", "bias * (rank == 0)", "bias * (rank == size - 1)", "only rank 0 has it"),
    M("12.2", "bias * (rank == 0)", "bias if rank == 0 else None", "nothing .None."),
    M("12.2", "bias * (rank == 0)", "bias * (rank == 0) + 1e-9", "only rank 0 has it"),
    M("12.3", "thirds = [split_columns(w, b, rank, size)", "thirds = [(w.reshape(len(w), num_heads, -1)[:, rank::size].reshape(len(w), -1), split_columns(w, b, rank, size)[1])", "its heads of each"),
    M("12.4", "sums = [part.astype(part.dtype) for part in parts]", "sums = [part.astype(part.dtype).ravel() for part in parts]\n    parts = [part.ravel() for part in parts]", "place for every number"),
    M("12.4", "    return sums", "    return [np.full_like(total, total.ravel()[0]) for total in sums]", "number by number"),
    M("12.4", "    return sums", "    return sums if parts[0].ndim < 3 else [total.T.reshape(total.shape) for total in sums]", "number by number"),
    M("12.4", "    return sums", "    parts.reverse()\n    return sums", "list of parts was changed"),
    M("12.4", "    return sums", "    parts[-1][...] = sums[-1]\n    return sums", "was changed"),
    M("12.4", "    return sums", "    return parts if len(parts) == 1 else sums", "one and the same array"),
]  # fmt: skip
MEASURING = [
    M("13.1", "np.percentile(values, percent)", "np.percentile(values, int(percent))", "of the way is place"),
    M("13.1", "return float(np.percentile(values, percent))", "return round(float(np.percentile(values, percent)), 3)", "of the way is place"),
    M("13.1", "np.percentile(values, percent)", "np.percentile([abs(v) for v in values], percent)", "of the way is place"),
    M("13.1", "np.percentile(values, percent)", "np.percentile(list(set(values)), percent)", "of the way is place"),
    M("13.1", "return float(np.percentile(values, percent))", "return np.percentile(values, [percent])", "has to be one number"),
    M("13.1", 'raise ValueError("nothing was measured")', "return float('nan')", "raise ValueError"),
    M("13.2", "(max(ends) - min(arrivals))", "(ends[-1] - arrivals[0])", "between the first arrival|ZeroDivision"),
    M("13.2", "(max(ends) - min(arrivals))", "(max(ends) - min(arrivals) + 1e-9)", "between the first arrival"),
    M("13.2", "arrivals, _, ends, tokens = zip(*served)", "_, arrivals, ends, tokens = zip(*served)", "between the first arrival|ZeroDivision"),
    M("13.2", "    arrivals, _", "    served.sort()\n    arrivals, _", "belongs to somebody else"),
    M("13.3", "(end - arrival) / tokens for", "(end - arrival) / max(tokens - 1, 1) for", "its own seconds a token"),
    M("13.3", "    return fmean((end - arrival) / tokens", "    return round(1, 2) * fmean(round((end - arrival) / tokens, 4)", "its own seconds a token"),
    M("13.4", "memory // bytes_per_token // block_size", "round(memory / (bytes_per_token * block_size))", "whole blocks"),
    M("13.4", "    return blocks_there // blocks_each", "    return max(1, blocks_there // blocks_each)", "Requests count whole"),
    M("13.4", "    return blocks_there // blocks_each", "    return float(blocks_there // blocks_each)", "whole number"),
]  # fmt: skip
SCORE = "    score = 0.0\n    for d in range(q.shape[2]):\n        score += q[s, h, d] * k_cache[block, offset, kv, d]\n    return score"
ATTENTION_LOOP = "    top = -math.inf\n    for t in range(length):\n        top = max(top, score_of(q, k_cache, s, h, kv, block_tables[s, t // size], t % size) * scale)\n"
KERNELS = [
    M("11.1", "    cache[destinations[copy], number] = value", "    for j in range(len(sources)):\n        if copy == j and number == 0:\n            for d in range(cache.shape[1]):\n                cache[destinations[j], d] = cache[sources[j], d]", "each its own share"),
    M("11.1", "copy, number = divmod(thread_number(), cache.shape[1])", "number, copy = divmod(thread_number(), max(1, sources.shape[0]))\n    if number >= cache.shape[1]:\n        return", "each its own share"),
    M("11.1", "    value = cache[sources[copy], number]\n", "    value = [cache[sources[copy], d] for d in range(cache.shape[1])][number]\n", "a list comprehension"),
    M("11.1", "    value = cache[sources[copy], number]\n", "    value = sum((cache[sources[copy], number],))\n", "sum"),
    M("11.1", "    cache[destinations[copy], number] = value", "    cache[destinations[copy], number] = value\n    return value", "returns nothing"),
    M("11.1", "    cache[destinations[copy], number] = value", "    cache[destinations[copy]] = cache[sources[copy]]", "both write"),
    M("11.1", "divmod(thread_number(), cache.shape[1])", "thread_number() / cache.shape[1], thread_number() % cache.shape[1]", "whole number"),
    M("11.1", "    value = cache[sources[copy], number]\n", "    try:\n        value = cache[sources[copy], number]\n    except IndexError:\n        return\n", "has try"),
    M("11.1", "cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x", "cuda.blockIdx.x * 4 + cuda.threadIdx.x", "Thread i copies|both write|have to do nothing|own share"),
    M("11.1", "    value = cache[sources[copy], number]\n", "    value = cache[sources[copy] - cache.shape[0], number]\n", "somebody else's memory"),
    M("11.2", SCORE, "    return sum(q[s, h, d] * k_cache[block, offset, kv, d] for d in range(q.shape[2]))", "a generator expression|has sum"),
    M("11.2", SCORE, "    import numpy as np\n    return np.dot(q[s, h], k_cache[block, offset, kv])", "does not have: write a loop"),
    M("11.2", SCORE, "    return (q[s, h] * k_cache[block, offset, kv]).sum()", "write a loop"),
    M("11.2", SCORE, "    return q[s, h] @ k_cache[block, offset, kv]", "write a loop"),
    M("11.2", SCORE, "    scores = []\n    for d in range(q.shape[2]):\n        scores.append(q[s, h, d] * k_cache[block, offset, kv, d])\n    return math.fsum(scores)", "has a list|fsum"),
    M("11.2", SCORE + "\n", "    SCORES.clear()\n    for d in range(q.shape[2]):\n        SCORES.append(q[s, h, d] * k_cache[block, offset, kv, d])\n    score = 0.0\n    for one in SCORES:\n        score += one\n    return score\n\n\nSCORES = []\n", "a list of Python's"),
    M("11.2", SCORE, "    import numpy\n    score = 0.0\n    for d in range(q.shape[2]):\n        score += numpy.sum((q[s, h, d] * k_cache[block, offset, kv, d],))\n    return score", "an import"),
    M("11.2", SCORE, "    return math.fsum((q[s, h, 0] * k_cache[block, offset, kv, 0], 0.0)) if q.shape[2] == 1 else math.fsum(tuple(map(lambda d: q[s, h, d] * k_cache[block, offset, kv, d], range(q.shape[2]))))", "math.fsum|map|lambda"),
    M("11.2", ATTENTION_LOOP, "    scores = cuda.local.array(length, 'float32')\n    for t in range(length):\n        scores[t] = score_of(q, k_cache, s, h, kv, block_tables[s, t // size], t % size) * scale\n"
      "    top = scores[0]\n    for t in range(length):\n        top = max(top, scores[t])\n", "not for all scores"),
    M("11.2", "* scale - top)", "* scale)", "too large for any number|NaN came out"),
    M("11.2", "out[s, h, d] = out[s, h, d] / total", "out[s, h, d] = out[s, h, d] / (total + 1e-2)", "divides the result"),
    M("11.2", "    top = -math.inf\n", "    top = 0.0\n", "weights are exp|NaN came out"),
    M("11.2", "        out[s, h, d] = 0.0\n", "        out[s, h, d] *= 0.0\n", "rubbish at first"),
    M("11.2", "s, h = divmod(thread_number(), q.shape[1])\n    if s >= q.shape[0]:", "h, s = divmod(thread_number(), q.shape[0])\n    if h >= q.shape[1]:", "each its own share"),
]  # fmt: skip
SUBTLE = (
    WHY_PAGING
    + GPT_AND_CACHE
    + BLOCK_POOL
    + BLOCK_TABLE
    + COPY_ON_WRITE
    + ATTENTION
    + SCHEDULER
    + PREEMPTION
    + PREFIX_CACHE
)
SUBTLE += KERNELS + QUANTIZED + PARALLEL + MEASURING
