"""What decides the output of each training stage; light to import, without torch."""
