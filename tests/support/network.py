"""Errors that end pip where the network fails; its warnings of tries that it repeats are none of these."""

NETWORK = r"\(from versions: none\)|^ERROR: HTTP error 5"
NETWORK += r"|^pip\._vendor\.\S+(Timeout|Connection|Protocol)"
