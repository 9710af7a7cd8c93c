"""Our kernel in what people have already: WSGI servers and Flask."""
