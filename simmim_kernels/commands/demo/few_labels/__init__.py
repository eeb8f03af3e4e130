"""Transfer to tasks with a few labels: tasks, their data, training, report."""
