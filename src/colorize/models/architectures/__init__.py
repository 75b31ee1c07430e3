"""One file per architecture; the file's name is its name, and it is imported only when asked for."""
