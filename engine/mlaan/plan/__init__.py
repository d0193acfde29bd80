"""Plan: the task graph of one training step, its order, and what it will cost."""

from mlaan.plan.graph import Kind, Task, TaskGraph, build_graph, head_homes
from mlaan.plan.schedule import Step, StepPlan, make_plan

__all__ = ["Kind", "Step", "StepPlan", "Task", "TaskGraph", "build_graph", "head_homes", "make_plan"]
