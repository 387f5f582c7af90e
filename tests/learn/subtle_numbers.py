"""Wrong solutions that are hard to see, of the lessons that compute with numbers; see subtle_mistakes.py."""

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
NUMBERS = WHY_PAGING + GPT_AND_CACHE + ATTENTION + KERNELS + QUANTIZED + PARALLEL + MEASURING
