"""Which nodes of two graphs stand for each other, by structure.

First what is equal from above: the same operation on the same arguments, down from the inputs.
Then what is demanded: the results stand for each other, so what computes them does, argument by
argument, as long as it is the same operation; and the only user of a kind of a matched node, too.
Which of several equal nodes is which is told by what is made of them (color refinement).
What is left between matched nodes is aligned as a sequence. Last come nodes that have changed:
neighbors tell which they are. Repeated layers stay in order, because weights, results and what
was matched before pin them.

Each node is matched once and then looks at its neighbors once, so the time goes with the size of
the graphs, besides the alignment of what is left.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, Any, TypeAlias

from ._align import align
from ._sources import pair_attributes, pair_placeholders

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from ._nodes import Side


_Numbers: TypeAlias = "tuple[list[int], list[int]]"  # one for each row of either side
_MOST_ROUNDS = 8


def match(old: Side, new: Side) -> Matching:
    """Match two graphs; where their inputs can be paired in two ways, in the better of them."""
    ways = pair_placeholders(old, new)
    return min((Matching(old, new, way) for way in ways), key=Matching.differences)


class Matching:
    """The rows of two sides that stand for each other.

    Args:
        old: The old graph.
        new: The new graph.
        inputs: Its inputs that stand for inputs of the other.

    Attributes:
        old: The old graph.
        new: The new graph.
        new_of: For each old row the new one, or -1.
        old_of: For each new row the old one, or -1.
        attributes: Paths of the old graph, and those of the new one that stand for them.
    """

    def __init__(self, old: Side, new: Side, inputs: list[tuple[int, int]]) -> None:
        self.old, self.new = self._sides = old, new
        self.new_of, self.old_of = [-1] * len(old), [-1] * len(new)
        self.attributes = pair_attributes(old, new)
        self._strong: deque[tuple[int, int]] = deque()  # to look at the neighbors of
        self._weak: deque[tuple[int, int]] = deque()  # perhaps the same, changed
        self._label(inputs)
        self._classes = _classes(old, new)
        self._twins = [*_refined(old, new, self._classes), self._classes]  # the finest first
        self._free = tuple(Counter(each) for each in self._classes)
        self._unmatched_slots = tuple([len(row.slots) for row in side.rows] for side in (old, new))
        self._calls: tuple[dict[int, int], ...] = ({}, {})  # of rows whose inputs are matched
        self._call_numbers: dict[Hashable, int] = {}
        for pair in inputs:
            self._match(*pair)
        self._unique_from_above()
        outputs = [
            [i for i, row in enumerate(side.rows) if row.node.op == "output"] for side in (old, new)
        ]
        for pair in zip(*outputs, strict=False):
            self._match(*pair)
        self._propagate()
        self._equal_from_above()
        self._in_order(lambda side, row: side.rows[row].label)
        self._changed()
        self._in_order(lambda side, row: side.rows[row].kind)
        self._changed()
        self._beside_what_is_gone()
        self._changed()

    def pairs(self) -> list[tuple[int, int]]:
        """Matched rows, in the new order."""
        return [(i, j) for j, i in enumerate(self.old_of) if i >= 0]

    def differences(self) -> int:
        """How many nodes stand for none, and how many uses of nodes are uses of others."""
        pairs = self.pairs()
        rewired = sum(self.new_of[p] != q for i, j in pairs for p, q in self._inputs(i, j))
        return len(self.old) + len(self.new) - 2 * len(pairs) + rewired

    def _label(self, inputs: list[tuple[int, int]]) -> None:
        keys: tuple[dict[int, Hashable], ...] = ({}, {})
        for number, (i, j) in enumerate(inputs):
            keys[0][i] = keys[1][j] = number
        paths = {new: old for old, new in self.attributes.items()}
        for which, side in enumerate((self.old, self.new)):
            for index, row in enumerate(side.rows):
                if row.node.op == "placeholder":
                    row.label = ("input", keys[which].get(index, (which, index)))
                    continue
                held: Hashable = None
                if row.node.op in ("get_attr", "call_module"):
                    path = str(row.node.target)
                    known = path in self.attributes if which == 0 else path in paths
                    held = (path if which == 0 else paths[path]) if known else (which, path)
                texts = tuple((place, each.template) for place, each in row.arguments.items())
                row.label = (row.kind, held, texts)

    # --- matching ------------------------------------------------------------------------------

    def _match(self, i: int, j: int) -> None:
        self.new_of[i], self.old_of[j] = j, i
        self._free[0][self._classes[0][i]] -= 1
        self._free[1][self._classes[1][j]] -= 1
        for which, row in enumerate((i, j)):
            for user, _ in self._sides[which].rows[row].users:
                self._unmatched_slots[which][user] -= 1
        self._strong.append((i, j))

    def _is_free(self, i: int, j: int) -> bool:
        return self.new_of[i] < 0 and self.old_of[j] < 0

    def _may(self, i: int, j: int) -> bool:
        """Whether neither of two unmatched nodes has an equal one that is free as well."""
        one, other = self._classes[0][i], self._classes[1][j]
        return one == other or not (self._free[1][one] or self._free[0][other])

    def _unique_from_above(self) -> None:
        """Match what is the only one on either side to do the same with the same."""
        for mine, theirs in self._free_by(self._classes):
            if len(mine) == len(theirs) == 1:
                self._match(mine[0], theirs[0])

    def _equal_from_above(self) -> None:
        """Match what does the same with the same, and of that first what is used in the same way.

        One pair at a time: its neighbors settle which of several equal ones the next pair is.
        """
        for numbers in self._twins:
            for mine, theirs in self._free_by(numbers):
                others = deque(theirs)
                for i in mine:
                    while others and self.old_of[others[0]] >= 0:
                        others.popleft()
                    if others and self.new_of[i] < 0:
                        self._match(i, others.popleft())
                        self._propagate()

    def _free_by(self, numbers: _Numbers) -> list[tuple[list[int], list[int]]]:
        """The rows of both sides that are not matched, those with one key together."""
        found: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for which, taken in enumerate((self.new_of, self.old_of)):
            for row, match in enumerate(taken):
                if match < 0:
                    found[numbers[which][row]][which].append(row)
        return list(found.values())

    def _propagate(self) -> None:
        """Match the same operations in the same places beside nodes that are matched."""
        while self._strong:
            i, j = self._strong.popleft()
            for p, q in self._inputs(i, j):
                if self._is_free(p, q):
                    if (
                        self.old.rows[p].label == self.new.rows[q].label
                        and self._may(p, q)
                        and self._support(p, q)[1] < 2
                    ):
                        self._match(p, q)
                    else:
                        self._weak.append((p, q))
            self._same_from_above(i, j)
            for p, q in self._users(i, j, lambda row: row.label):
                if self._is_free(p, q):
                    if self._support(p, q)[1] == 0 and self._may(p, q):
                        self._match(p, q)
                    else:
                        self._weak.append((p, q))
            self._weak.extend(self._users(i, j, lambda row: row.kind))
            self._weak.extend(self._users(i, j, lambda row: row.node.op))

    def _inputs(self, i: int, j: int) -> list[tuple[int, int]]:
        """What two rows take in the same places."""
        mine, theirs = self.old.rows[i].slots, self.new.rows[j].slots
        if self.old.rows[i].node.op == "output" and len(mine) != len(theirs):
            # nothing is said by which result of how many it is: those that are there are aligned
            left = [
                self.new_of[p] if self.new_of[p] >= 0 else self.old.rows[p].label for *_, p in mine
            ]
            right = [q if self.old_of[q] >= 0 else self.new.rows[q].label for *_, q in theirs]
            return [(mine[x][2], theirs[y][2]) for x, y in align(left, right)]
        if len(mine) == len(theirs):
            return [(p[2], q[2]) for p, q in zip(mine, theirs, strict=True)]
        there = {slot[:2]: slot[2] for slot in theirs}
        return [(slot[2], there[slot[:2]]) for slot in mine if slot[:2] in there]

    def _same_from_above(self, i: int, j: int) -> None:
        """Match users that do the same with matched inputs, those used in the same way first."""
        mine, theirs = self._ready_users(0, i), self._ready_users(1, j)
        for numbers in (*self._twins, None) if mine and theirs else ():
            waiting: dict[Hashable, deque[int]] = defaultdict(deque)
            for user, call in theirs:
                if self.old_of[user] < 0:
                    waiting[call, numbers and numbers[1][user]].append(user)
            for user, call in mine:
                if self.new_of[user] < 0:
                    others = waiting.get((call, numbers and numbers[0][user]))
                    if others:
                        self._match(user, others.popleft())

    def _ready_users(self, which: int, row: int) -> list[tuple[int, int]]:
        """Unmatched users of which all inputs are matched, with a number for what they do."""
        users = dict.fromkeys(user for user, _ in self._sides[which].rows[row].users)
        taken = (self.new_of, self.old_of)[which]
        return [
            (user, self._call(which, user))
            for user in users
            if taken[user] < 0 and not self._unmatched_slots[which][user]
        ]

    def _call(self, which: int, row: int) -> int:
        """A number, the same for what does the same with inputs that stand for each other."""
        known = self._calls[which].get(row)
        if known is None:
            each = self._sides[which].rows[row]
            sources = tuple(
                self.new_of[source] if which == 0 else source for _, _, source in each.slots
            )
            known = self._call_numbers.setdefault((each.label, sources), len(self._call_numbers))
            self._calls[which][row] = known
        return known

    def _users(self, i: int, j: int, key: Callable[[Any], Hashable]) -> list[tuple[int, int]]:
        """Unmatched users of two rows that are the only ones of their kind."""
        found: dict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for which, (side, row, taken) in enumerate(
            ((self.old, i, self.new_of), (self.new, j, self.old_of))
        ):
            for user, slot in side.rows[row].users:
                if taken[user] < 0:
                    each = side.rows[user]
                    found[key(each), each.slots[slot][:2]][which].append(user)
        return [
            (mine[0], theirs[0]) for mine, theirs in found.values() if len(mine) == len(theirs) == 1
        ]

    def _support(self, p: int, q: int, *, through: bool = False) -> tuple[int, int]:
        """In how many places matched neighbors agree that two rows are one, and in how many not.

        With ``through`` an unmatched input stands for what it was computed from.
        """
        agree = differ = 0
        for x, y in self._inputs(p, q):
            if through:
                x, y = _through(self.old, self.new_of, x), _through(self.new, self.old_of, y)
            if self.new_of[x] == y:
                agree += 1
            elif self.new_of[x] >= 0 or self.old_of[y] >= 0:
                differ += 1
        theirs = {(user, slot) for user, slot in self.new.rows[q].users}
        for user, slot in self.old.rows[p].users:
            other = self.new_of[user]
            if other >= 0:
                if (other, slot) in theirs:
                    agree += 1
                else:
                    differ += 1
        return agree, differ

    # --- what is left --------------------------------------------------------------------------

    def _in_order(self, key: Callable[[Side, int], Hashable]) -> None:
        """Align what is left after, and before, the same matched node."""
        for forward in (True, False):
            mine = _segments(self.new_of, self.new_of, forward=forward)
            own = list(range(len(self.new)))
            theirs = _segments(self.old_of, own, forward=forward)
            for anchor, rows in mine.items():
                others = theirs.get(anchor, [])
                keys = [key(self.old, i) for i in rows], [key(self.new, j) for j in others]
                for x, y in align(*keys):
                    i, j = rows[x], others[y]
                    agree, differ = self._support(i, j)
                    if self._is_free(i, j) and self._may(i, j) and (agree or not differ):
                        self._match(i, j)
            self._propagate()

    def _beside_what_is_gone(self) -> None:
        """Match equal nodes whose neighbors were removed or added, through those."""
        mine = [i for i, match in enumerate(self.new_of) if match < 0]
        theirs = [j for j, match in enumerate(self.old_of) if match < 0]
        keys = [self.old.rows[i].label for i in mine], [self.new.rows[j].label for j in theirs]
        for x, y in align(*keys):
            agree, differ = self._support(mine[x], theirs[y], through=True)
            if self._is_free(mine[x], theirs[y]) and agree > differ:
                self._match(mine[x], theirs[y])
        self._propagate()

    def _changed(self) -> None:
        while self._weak:
            i, j = self._weak.popleft()
            if self._is_free(i, j) and self._may(i, j) and self._is_change(i, j):
                self._match(i, j)
                self._propagate()

    def _is_change(self, i: int, j: int) -> bool:
        one, other = self.old.rows[i], self.new.rows[j]
        agree, differ = self._support(i, j)
        if one.node.op == "placeholder" or other.node.op == "placeholder":
            return False
        if one.kind == other.kind:
            return agree > 0 and agree >= differ
        inputs = self._inputs(i, j)
        return (
            len(inputs) == len(one.slots) == len(other.slots)
            and one.node.op.startswith("call_")
            and other.node.op.startswith("call_")
            and differ == 0
            and all(self.new_of[x] == y for x, y in inputs)
            and agree
            > len(inputs) - (not one.users and not other.users)  # results of a write need no user
        )


def _through(side: Side, taken: list[int], row: int) -> int:
    while taken[row] < 0 and side.rows[row].slots:
        row = side.rows[row].slots[0][2]
    return row


def _segments(taken: list[int], names: list[int], *, forward: bool) -> dict[int, list[int]]:
    """Unmatched rows by the matched row before them (or after), named by the new graph's row."""
    found: dict[int, list[int]] = defaultdict(list)
    anchor = -1
    rows = range(len(taken))
    for row in rows if forward else reversed(rows):
        if taken[row] >= 0:
            anchor = names[row]
        else:
            found[anchor].append(row)
    if not forward:
        for each in found.values():
            each.reverse()
    return found


def _classes(old: Side, new: Side) -> _Numbers:
    """A number for each row: the same for the same operation on the same arguments."""
    known: dict[Hashable, int] = {}
    labels = tuple(
        [known.setdefault(row.label, len(known)) for row in side.rows] for side in (old, new)
    )
    return _numbered(old, new, (labels[0], labels[1]), from_users=False)


def _refined(old: Side, new: Side, classes: _Numbers) -> list[_Numbers]:
    """Numbers that tell rows of one class apart by what is made of them; the finest first.

    The coarsest looks down from a row to the results. What its users take besides is looked at in
    the next, and so on, up and down, until nothing more is told apart (color refinement).
    """
    found: list[_Numbers] = []
    numbers, count = classes, len({*classes[0], *classes[1]})
    while len(found) < _MOST_ROUNDS:
        down = _numbered(old, new, numbers, from_users=True)
        if (more := len({*down[0], *down[1]})) == count:
            break
        found.insert(0, down)
        count = more
        numbers = _numbered(old, new, down, from_users=False)
    return found[:: max(1, len(found) - 1)]  # the finest and the coarsest


def _numbered(old: Side, new: Side, before: _Numbers, *, from_users: bool) -> _Numbers:
    """A number for each row: its number before, and those of its users or of its inputs."""
    known: dict[Hashable, int] = {}
    numbers: _Numbers = ([0] * len(old), [0] * len(new))
    for side, own, found in zip((old, new), before, numbers, strict=True):
        rows = range(len(side))
        for index in reversed(rows) if from_users else rows:
            row = side.rows[index]
            beside: list[Any] = (
                sorted((found[user], slot) for user, slot in row.users)
                if from_users
                else [found[source] for _, _, source in row.slots]
            )
            found[index] = known.setdefault((own[index], tuple(beside)), len(known))
    return numbers
