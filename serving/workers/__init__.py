"""The processes: one that watches, and those that it forks, replaces and keeps agreed."""
