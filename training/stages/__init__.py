"""Inputs and stage keys of each training stage; light to import, without torch."""
