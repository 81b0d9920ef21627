"""Small models and workspaces for the tests of training, and the loops it is compared with."""
