"""At home in the ecosystem: what other tools have is read here, and what is made here is handed to them."""
