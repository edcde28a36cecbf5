"""How long layers and models take."""
