"""Operations on the elements of a timestep, as a list of nodes in the order of computation.

A node is a tuple: the name of an operation and the numbers of the nodes that it takes, or of a leaf
and which one it is:

    ("x",)               the input current                ("state", i)    a state before the step
    ("middle", i)        a state before the reset         ("spike", 0)    as `reset` sees it
    ("coefficient", i)   a value that is the same for     ("spike", 1)    as `adapt` sees it
                         all samples and timesteps        ("number", 2)   an integer

and in the backward pass ("c", i), the gradient of a state after the step, ("g",) and ("gu",), those
of spikes and membrane, ("rho",), the factor of the reset gradient, and, if there is a mask, ("h",),
the surrogate derivative, and ("own",), the part of it from the base surrogate.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Node: TypeAlias = tuple[Any, ...]
LEAVES = {
    *("x", "state", "middle", "spike", "coefficient", "number"),
    *("c", "g", "gu", "h", "own", "rho"),
}


class Graph:
    """Nodes, each of them once."""

    def __init__(self, nodes: tuple[Node, ...] = ()) -> None:
        self.nodes = list(nodes)
        self._number = {node: i for i, node in enumerate(nodes)}

    def __call__(self, *node: Any) -> int:
        """The number of this node, which is added if it is new."""
        if node not in self._number:
            self._number[node] = len(self.nodes)
            self.nodes.append(node)
        return self._number[node]

    def inputs(self, i: int) -> tuple[int, ...]:
        """The nodes that this node takes."""
        node = self.nodes[i]
        return () if node[0] in LEAVES else node[1:]
