"""One file per architecture, with the name of the architecture; it is imported only when it is used."""
