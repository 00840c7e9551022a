"""What a query in PromQL asks for."""

from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser as promql

# What Grafana puts into a board's queries.
VARIABLES = {"$__rate_interval": "1m", "$namespace": "chroma-mesh"}


@dataclass(frozen=True)
class Selector:
    """Series that a query reads: their name, and the values that their labels must have (=, !=, =~ or !~)."""

    text: str
    name: str
    equal: tuple[tuple[str, str], ...]
    labels: frozenset[str]


@dataclass(frozen=True)
class Asked:
    """All that a query reads, and the labels that it groups or joins by."""

    selectors: tuple[Selector, ...]
    grouping: frozenset[str]


def filled(query: str, **variables: str) -> str:
    """A board's query with values for Grafana's variables."""
    for name, value in {**VARIABLES, **{f"${name}": value for name, value in variables.items()}}.items():
        query = query.replace(name, value)
    return query


def asked(query: str) -> Asked:
    """Reads a query; ValueError for what is no PromQL."""
    nodes: list[promql.Expr] = []

    def visit(node: promql.Expr) -> bool:
        nodes.append(node)
        return True

    promql.walk(promql.parse(filled(query)), visit)
    selectors = tuple(selector(node) for node in nodes if isinstance(node, promql.VectorSelector))
    return Asked(selectors, frozenset(label for node in nodes for label in grouping(node)))


def selector(node: promql.VectorSelector) -> Selector:
    """The series that are read."""
    matchers = node.matchers.matchers
    return Selector(
        text=node.prettify().strip(),
        name=node.name,
        equal=tuple((matcher.name, matcher.value) for matcher in matchers if matcher.op == promql.MatchOp.Equal),
        labels=frozenset(matcher.name for matcher in matchers),
    )


def grouping(node: promql.Expr) -> Iterator[str]:
    """The labels of `by`, `on` and their like."""
    if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        yield from node.modifier.labels
    if isinstance(node, promql.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
        yield from node.modifier.matching.labels
