"""The pages that hold the beginnings of prompts, as a tree: a path from the root is a prompt, a node is one page.

Tokens are compared themselves, not their hashes, so that two different prompts are never taken for equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Tokens = tuple[int, ...]


class Node:
    """A page whose first slots hold the keys and values of ``tokens``, at their place after the tokens of all parents.

    ``children`` are found by their tokens; only a full page has any. ``page`` is -1 until `PromptTree.place`.
    ``retainable`` is False for a page that must be freed when its last row leaves, because nobody knows whether its
    keys and values were ever written.
    """

    __slots__ = ("children", "page", "parent", "retainable", "tokens")

    def __init__(self, parent: Node | None, tokens: Tokens) -> None:
        self.parent, self.tokens, self.page, self.retainable = parent, tokens, -1, True
        self.children: dict[Tokens, Node] = {}


class PromptTree:
    """``nodes``: the node of each page that is in the tree; ``root`` has no page."""

    def __init__(self, page_slots: int) -> None:
        self.page_slots = page_slots
        self.root = Node(None, ())
        self.nodes: dict[int, Node] = {}

    def known(self, prompt: Sequence[int]) -> int:
        """How many leading tokens of ``prompt`` are in the tree."""
        node, known = self.root, 0
        for tokens in self._split(prompt):
            child = self._find(node, tokens)
            if child is None:
                break
            node, known = child, known + len(tokens)
        return known

    def follow(self, prompt: Tokens, made: list[Node]) -> tuple[list[Node], int]:
        """The nodes of all pages of ``prompt``, and how many of its leading tokens were in the tree before.

        Missing nodes are put into the tree without a page, and appended to ``made``.
        """
        node, path, known = self.root, [], 0
        for tokens in self._split(prompt):
            child = self._find(node, tokens)
            if child is None:
                child = node.children[tokens] = Node(node, tokens)
                made.append(child)
            else:
                known += len(tokens)
            path.append(child)
            node = child
        return path, known

    def _split(self, prompt: Sequence[int]) -> Iterator[Tokens]:
        for start in range(0, len(prompt), self.page_slots):
            yield tuple(prompt[start : start + self.page_slots])

    def _find(self, node: Node, tokens: Tokens) -> Node | None:
        """The child of ``node`` whose tokens begin with ``tokens``."""
        child = node.children.get(tokens)
        if child is None and len(tokens) < self.page_slots:
            child = next((c for c in node.children.values() if c.tokens[: len(tokens)] == tokens), None)
        return child

    def place(self, nodes: list[Node], pages: list[int]) -> None:
        """Give ``nodes``, which `follow` made, their pages."""
        for node, page in zip(nodes, pages, strict=True):
            node.page = page
            self.nodes[page] = node

    def extend(self, tokens: Tokens, pages: list[int]) -> None:
        """Put ``tokens`` and the ``pages`` that hold them into the tree, whole pages only, as far as they are the ones
        that the tree has: where it has the same tokens in another page, or a page that may not be retained, it stops.
        """
        node = self.root
        for page, part in zip(pages, self._split(tokens), strict=False):
            if len(part) < self.page_slots:
                return
            child, own = node.children.get(part), self.nodes.get(page)
            if child is None and own is None:
                child = node.children[part] = Node(node, part)
                self.place([child], [page])
            elif child is None and own is not None and own.parent is node and own.retainable:
                del node.children[own.tokens]  # the page has filled up since: it began with a prompt's last tokens
                own.tokens = part
                node.children[part] = child = own
            if child is None or child.page != page:
                return
            node = child

    def drop(self, nodes: Iterable[Node]) -> None:
        """Take ``nodes`` out of the tree. The caller drops all nodes below them too."""
        for node in nodes:
            assert node.parent is not None
            del node.parent.children[node.tokens]
            self.nodes.pop(node.page, None)

    def below(self, node: Node) -> list[Node]:
        """All nodes below ``node``, parents before their children."""
        found = list(node.children.values())
        for child in found:  # grows as it is read
            found += child.children.values()
        return found

    def trim(self, node: Node, length: int) -> None:
        """Forget all but the first ``length`` tokens of ``node``, which has no children: its only owner will overwrite
        the others. The node leaves the tree if another page holds these tokens already.
        """
        assert node.parent is not None
        assert not node.children
        tokens, siblings = node.tokens[:length], node.parent.children
        self.drop([node])
        if tokens not in siblings:
            node.tokens = tokens
            siblings[tokens] = node
            self.nodes[node.page] = node
