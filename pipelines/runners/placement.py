"""Which tasks share an actor. Frames are large: a source of frames lives with the operator that reads them, where it can.

Then no frame is copied between the two. Everything else gets an actor of its own.
"""

from __future__ import annotations

from pipelines import registry
from pipelines.graph import Graph
from pipelines.runtime.messages import TaskId

__all__ = ["placement"]


def placement(graph: Graph) -> list[tuple[TaskId, ...]]:
    """Return the tasks of each actor. The first task of an actor gives it its name and its kind.

    A source whose rows are bulky (``Source.bulky``) joins the first operator that reads it, where both are a single task.
    With ``parallelism`` or ``shards`` above 1 the work is meant to be spread over processes, and most rows have to leave
    theirs anyway.
    """
    joins: dict[TaskId, TaskId] = {}
    for source in graph.spec.sources:
        readers = [node for node in graph.spec.operators if source.name in node.inputs and node.shards == 1]
        if readers and source.parallelism == 1 and registry.load("source", source.type).bulky:
            joins[TaskId(source.name, 0)] = TaskId(readers[0].name, 0)
    actors: dict[TaskId, list[TaskId]] = {task: [task] for task in graph.tasks if task not in joins}
    for source_task, operator_task in joins.items():
        actors[operator_task].append(source_task)
    return [tuple(tasks) for tasks in actors.values()]
