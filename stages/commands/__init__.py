"""Chores of the training half that are no stages: they have effects outside the project's files."""
