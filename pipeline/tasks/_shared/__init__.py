"""What tasks share. Stages declare the folder whole: which of it a task uses, the task decides."""
