"""Decisions of people about predicted values: kept in one SQLite file, read as labelled samples."""
