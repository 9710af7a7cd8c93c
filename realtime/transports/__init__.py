"""What carries messages: gevent shells around the sans-I/O protocols, one file for each kind of connection."""
