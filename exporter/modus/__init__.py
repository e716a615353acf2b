"""The Modus API: its answers as values, and a client that asks for them."""
