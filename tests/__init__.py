"""The tests of Clozeworks: a folder for each room of each package, and what they share in support/."""
