"""A trie of tokens, from which the leaf that was not wanted for the longest time goes first."""


class Node:
    def __init__(self, parent=None, token=None):
        self.parent, self.token, self.children, self.used = parent, token, {}, 0


class Index:
    def __init__(self, capacity):
        self.capacity, self.root, self.size, self.clock = capacity, Node(), 0, 0
        self.leaves = {}

    def walk(self, tokens):
        self.clock += 1
        node = self.root
        for i, token in enumerate(tokens):
            if token not in node.children:
                return node, i
            node = node.children[token]
            node.used = self.clock
        return node, len(tokens)

    def find(self, tokens):
        return self.walk(tokens)[1]

    def insert(self, tokens):
        node, known = self.walk(tokens)
        for token in tokens[known:]:
            self.leaves.pop(id(node), None)
            node.children[token] = child = Node(node, token)
            child.used, node = self.clock, child
            self.size += 1
        if node is not self.root and not node.children:
            self.leaves[id(node)] = node
        while self.size > self.capacity:
            self.forget(min(self.leaves.values(), key=lambda leaf: leaf.used))

    def forget(self, leaf):
        del self.leaves[id(leaf)], leaf.parent.children[leaf.token]
        self.size -= 1
        if leaf.parent is not self.root and not leaf.parent.children:
            self.leaves[id(leaf.parent)] = leaf.parent

    def num_tokens(self):
        return self.size
