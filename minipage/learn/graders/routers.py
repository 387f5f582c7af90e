"""Routers beside a list: what each server has told, and who should get a prompt by the rule."""

from minipage.learn.graders.common import expect


class Told:
    """A learner's router, and beside it a plain list of which blocks are where."""

    def __init__(self, impl, block_size, most_ahead):
        impl.diary.begin()
        impl.diary.note(f"router = Router(block_size={block_size}, most_ahead={most_ahead})")
        self.diary, self.block_size, self.most_ahead = impl.diary, block_size, most_ahead
        self.router = impl.Router(block_size, most_ahead)
        self.there = []  # (server, hash, parent, tokens) of each block
        self.hashes = {}  # (server, text) -> hash; each server counts for itself

    def hash_of(self, server, text):
        if not text:
            return None
        mine = sum(name == server for name, _ in self.hashes)
        return self.hashes.setdefault((server, text), mine)

    def block_of(self, server, text):
        parent = self.hash_of(server, text[: -self.block_size])
        return server, self.hash_of(server, text), parent, text[-self.block_size :]

    def store(self, server, text):
        """The last block of a text is stored."""
        block = self.block_of(server, text)
        if block not in self.there:
            self.there.append(block)
            _, block_hash, parent, tokens = block
            self.call("stored", server, block_hash, parent, list(tokens))

    def remove(self, server, text):
        block = self.block_of(server, text)
        if block in self.there:
            self.there.remove(block)
            self.call("removed", server, block[1])

    def num_known(self, server, prompt):
        size, known = self.block_size, 0
        while known + size <= len(prompt) and self.block_of(server, prompt[: known + size]) in self.there:
            known += size
        return known // size

    def choose(self, prompt, loads):
        got = self.call("choose", list(prompt), dict(loads))
        fewest = min(loads.values())
        able = [name for name in loads if loads[name] - fewest <= self.most_ahead]
        known = {name: self.num_known(name, prompt) for name in loads}
        due = sorted(able, key=lambda name: (-known[name], loads[name], name))[0]
        told = ", ".join(f"{name} has {known[name]}" for name in sorted(loads))
        over = sorted(set(loads) - set(able))
        why = f"Of the blocks at the prompt's beginning {told}. " + (
            f"Overloaded, with more than {self.most_ahead} requests more than the fewest ({fewest}): {', '.join(over)}."
            if over
            else f"Nobody has more than {self.most_ahead} requests more than the fewest ({fewest})."
        )
        expect(f"choose({list(prompt)}, {loads})", got, due, why)

    def call(self, method, *args):
        """Noted first, in case that it raises; then a look at whether the judge is what it was."""
        self.diary.note(f"router.{method}({', '.join(map(repr, args))})")
        result = getattr(self.router, method)(*args)
        self.diary.after_call()
        return result
