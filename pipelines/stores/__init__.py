"""File systems of object stores that wait for a store which fails for minutes, and state every failure in one line."""
